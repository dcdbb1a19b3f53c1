import json, os, sys, sysconfig
variables = sysconfig.get_config_vars()
names = [variables.get("INSTSONAME"), variables.get("LDLIBRARY")]
folders = [variables.get("LIBDIR"), os.path.join(sys.base_prefix, "lib")]
shared = [
    os.path.join(folder, name)
    for folder in folders for name in names
    if folder and name and ".so" in name and variables.get("Py_ENABLE_SHARED")
]
print(json.dumps({
    "executable": sys.executable,
    "implementation": sys.implementation.name,
    "version": list(sys.version_info[:3]),
    "gil": not variables.get("Py_GIL_DISABLED"),
    "libraries": [path for path in shared if os.path.isfile(path)],
}))
