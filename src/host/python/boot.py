import sys

# Nothing of ours may be found in the working directory.
sys.path[:] = [path for path in sys.path if path]
import importlib.machinery
import importlib.util

_loader = importlib.machinery.ExtensionFileLoader("pythond_host", sys.argv[1])
_spec = importlib.util.spec_from_file_location("pythond_host", sys.argv[1], loader=_loader)
_module = importlib.util.module_from_spec(_spec)
_loader.exec_module(_module)
_module.main(sys.argv[2:])
