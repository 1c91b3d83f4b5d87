"""The package as a whole."""

import subprocess
import sys


def test_importing_the_package_is_light_and_changes_nothing() -> None:
    code = (
        "import sys, ppl_gen; assert 'torch' not in sys.modules and 'pyro' not in sys.modules;"
        "import torch, pyro; before = (torch.get_rng_state().tolist(), pyro.settings.get(), torch.get_num_threads());"
        "import ppl_gen.fit, ppl_gen.evaluate;"
        "assert before == (torch.get_rng_state().tolist(), pyro.settings.get(), torch.get_num_threads());"
        "heavy = {'matplotlib', 'arviz', 'torchvision', 'sklearn', 'xarray', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
