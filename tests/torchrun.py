"""Commands as two processes, as torchrun starts them; on the bundled digits."""

import subprocess
import sys

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


# The last of three batches has a single image, which leaves the second process with none.
MIXTURE = ("--data", "digits", "--binarization", "static", "--train-size", "257", "--num-components", "4")


def run_two(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True, timeout=200)
