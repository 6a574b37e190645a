"""What is in a checkpoint, and whether an imported model computes what its own code does.

    python -m jaxz.pretrained inspect PATH [--family F] [--arch JSON]
    python -m jaxz.pretrained check DIRECTORY [--save FILE.npz] [--x64]

DIRECTORY holds weights, io.npz (inputs and outputs of the reference) and meta.json; check ends with 1 where an output
is off by more than 1e-5.
"""

import argparse
import json
from pathlib import Path

import jax

from jaxz import errors, runtime
from jaxz.errors import InputError
from jaxz.files import read_json
from jaxz.pretrained import FAMILIES, inspect_checkpoint
from jaxz.pretrained.check import check, sources


def parse_arch(text: str) -> dict:
    """What --arch says. Raises InputError for what is no JSON object."""
    try:
        arch = json.loads(text)
    except ValueError as error:
        raise InputError(f"--arch: {text!r} is not JSON ({error}); write it as '{{\"heads\": 12}}'") from None
    if not isinstance(arch, dict):
        raise InputError(f"--arch: {text!r} is not a JSON object; write it as '{{\"heads\": 12}}'")
    return arch


def main(argv: list[str]) -> int:
    """Inspect or check what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jaxz.pretrained", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="what a file or directory holds, as JSON; builds nothing")
    inspect.add_argument("path")
    inspect.add_argument("--family", default="auto", choices=("auto", *FAMILIES))
    compare = commands.add_parser("check", help="an imported model against outputs of its own code")
    compare.add_argument("path", type=Path)
    compare.add_argument("--save", type=Path, help="FILE.npz for the outputs")
    compare.add_argument("--x64", action="store_true", help="compute and compare in float64")
    for command in (inspect, compare):
        command.add_argument("--arch", help='what no tensor says, such as \'{"heads": 12, "act": "gelu"}\'')
    options = parser.parse_args(argv)
    arch = parse_arch(options.arch) if options.arch else None
    if options.command == "inspect":
        path = Path(options.path)
        if (path / "meta.json").is_file():  # a directory that check takes
            path = sources(path, read_json(path / "meta.json", "what describes the reference"))[0]
        print(json.dumps(inspect_checkpoint(path, family=options.family, arch=arch), indent=1))
        return errors.OK
    runtime.set_xla_flags()
    jax.config.update("jax_enable_x64", options.x64)
    with jax.default_matmul_precision("highest"):  # GPUs round to 10 bits otherwise
        return errors.OK if check(options.path, options.save, options.x64, arch) else errors.FAILED


if __name__ == "__main__":
    errors.run(main)
