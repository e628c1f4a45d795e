"""Run by any interpreter, that of vLLM included: versions, and whether libraries can be imported.

Needs nothing but Python 3.9. Prints JSON objects line by line, so that what came before a crash is
known.
"""

import importlib
import importlib.util
import json
import os
import re
import sys
from importlib import metadata

# Longer than that, a message is a traceback of several libraries.
_MESSAGE_CHARACTERS = 300


def tell(**facts):  # noqa: ANN003, ANN201, D103
    print(json.dumps(facts), flush=True)


def versions(names):  # noqa: ANN001, ANN201, D103
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def requirements(names):  # noqa: ANN001, ANN201, D103
    found = {}
    for name in names:
        try:
            found[name] = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            found[name] = []
    return found


def torch_facts():  # noqa: ANN201
    """Versions that torch was built with, and of the libraries that it has loaded."""
    import torch

    facts = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": None,
        "nccl": None,
        "architectures": [],
        "devices": 0,
        "capabilities": [],
        "cuda_error": None,
    }
    if torch.version.cuda is None:
        return facts
    try:
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        facts["architectures"] = torch.cuda.get_arch_list()
        facts["devices"] = torch.cuda.device_count()
        if facts["devices"]:
            torch.cuda.init()
            facts["capabilities"] = [
                list(torch.cuda.get_device_capability(number))
                for number in range(facts["devices"])
            ]
    except Exception as error:
        facts["cuda_error"] = shortened(error)
    return facts


def shortened(error):  # noqa: ANN001, ANN201, D103
    return f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS]


def main(request):  # noqa: ANN001, ANN201
    """Prints the facts.

    Args:
        request: `versions`: distributions; `requirements`: those whose metadata are wanted;
            `imports`: modules, each with the module whose presence shows that it is installed.
    """
    tell(python=sys.version.split()[0], executable=sys.executable)
    required = requirements(request["requirements"])
    names = {re.match(r"[\w.-]+", line)[0] for lines in required.values() for line in lines}
    tell(versions=versions([*request["versions"], *sorted(names)]), requirements=required)
    for name, sign in request["imports"]:
        try:
            installed = importlib.util.find_spec(sign) is not None
        except (ImportError, ValueError):
            installed = False
        if not installed:
            continue
        tell(importing=name)
        try:
            importlib.import_module(name)
            tell(imported=name, error=None)
        except BaseException as error:
            tell(imported=name, error=shortened(error))
            continue
        if name == "torch":
            tell(torch=torch_facts())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    # Some libraries crash or hang when the interpreter ends.
    os._exit(0)
