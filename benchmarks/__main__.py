import argparse
import platform

import torch

from benchmarks import enumeration, importance, vae_step
from ppl_gen.memory import keep_freed_memory

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=vae_step.__doc__)
parser.add_argument("--rounds", type=int, default=400, help="calls of each candidate (default 400)")
rounds = parser.parse_args().rounds
print(
    f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; medians of interleaved calls"
)
keep_freed_memory()  # for all candidates alike: training and evaluation do the same
vae_step.main(rounds)
importance.main(rounds)
enumeration.main(rounds)
