# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel (PEP 517 and 660): the package, the library that Meson builds from the tree
around it, and the header. It needs nothing but Meson and Ninja, which pip installs where they are
missing.

Settings, as in `pip install --config-settings library=installed ./src/bindings/python`:

  library     build (default): Meson builds it; installed: none is packed, and the system's is used;
              otherwise the path of the library to pack
  meson-args  further arguments of `meson setup`, for example -Dcuda=disabled
"""

import base64
import hashlib
import pathlib
import re
import shlex
import shutil
import subprocess
import sysconfig
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
HEADER = ROOT / "include/hybridep.h"
BUILD = ROOT / "build-wheel"  # kept, so that the next build compiles only what has changed
PACKAGE = HERE / "hybridep"
SONAME = "libhybridep.so.0"


# ---------------------------------------------------------------------------------------- hooks


def get_requires_for_build_wheel(config_settings=None):
    if setting(config_settings, "library", "build") != "build":
        return []
    return [tool for tool in ("meson", "ninja") if shutil.which(tool) is None]


get_requires_for_build_editable = get_requires_for_build_wheel


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory) / info()
    folder.mkdir()
    (folder / "METADATA").write_text(metadata(), encoding="utf-8")
    return folder.name


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    files = {path.relative_to(HERE).as_posix(): path.read_bytes() for path in sources()}
    library = find_library(config_settings)
    if library is None:
        return write_wheel(wheel_directory, "py3-none-any", files)
    files[f"hybridep/lib/{SONAME}"] = library.read_bytes()
    files[f"hybridep/include/{HEADER.name}"] = HEADER.read_bytes()
    return write_wheel(wheel_directory, f"py3-none-{platform()}", files)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """The package stays where it is. The library is put beside it."""
    library = find_library(config_settings)
    if library is not None:
        (PACKAGE / "lib").mkdir(exist_ok=True)
        shutil.copyfile(library, PACKAGE / "lib" / SONAME)
    return write_wheel(wheel_directory, "py3-none-any", {"hybridep.pth": f"{HERE}\n".encode()})


def build_sdist(sdist_directory, config_settings=None):
    raise NotImplementedError("the package is built in the tree of the library, not from an sdist")


# -------------------------------------------------------------------------------------- contents


def setting(config_settings, name, default):
    return (config_settings or {}).get(name, default)


def sources():
    """The files of the package, without what runs and builds have left there."""
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE)
        if path.is_file() and "__pycache__" not in inside.parts and inside.parts[0] != "lib":
            yield path


def find_library(config_settings):
    """The library to pack, or None."""
    choice = setting(config_settings, "library", "build")
    if choice == "installed":
        return None
    if choice != "build":
        return pathlib.Path(choice).resolve(strict=True)
    return build_library(setting(config_settings, "meson-args", ""))


def build_library(arguments):
    arguments = arguments if isinstance(arguments, list) else shlex.split(arguments)
    again = ["--reconfigure"] if (BUILD / "build.ninja").exists() else []
    options = ["-Dtests=false", "-Dtools=false", *arguments]
    subprocess.run(["meson", "setup", *again, str(BUILD), str(ROOT), *options], check=True)
    subprocess.run(["ninja", "-C", str(BUILD)], check=True)
    return BUILD / "src" / SONAME


def platform():
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


def version():
    """The version stands in the header alone."""
    return ".".join(re.findall(r"^#define HEP_VERSION_[MP][A-Z]* (\d+)", HEADER.read_text(), re.M))


def project(name):
    """A text of the table [project] of pyproject.toml, which Python 3.9 cannot parse."""
    text = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(rf'^{name} = "(.*)"$', text, re.M).group(1)


# ----------------------------------------------------------------------------------------- wheel


def distribution():
    return f"{project('name')}-{version()}"


def info():
    return f"{distribution()}.dist-info"


def metadata():
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    return (
        "Metadata-Version: 2.1\n"
        f"Name: {project('name')}\n"
        f"Version: {version()}\n"
        f"Summary: {project('description')}\n"
        "License: Apache-2.0\n"
        f"Requires-Python: {project('requires-python')}\n"
        "Description-Content-Type: text/markdown\n"
        f"\n{readme}"
    )


def wheel_file(tag):
    return (
        "Wheel-Version: 1.0\n"
        "Generator: hybridep\n"
        f"Root-Is-Purelib: {'true' if tag.endswith('-any') else 'false'}\n"
        f"Tag: {tag}\n"
    )


def record(files, name):
    lines = []
    for path, contents in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(contents)}")
    return "\n".join([*lines, f"{name},,", ""])


def write_wheel(folder, tag, files):
    """Writes the wheel of files, by their names in it, and returns its name."""
    files = dict(files)
    files[f"{info()}/METADATA"] = metadata().encode()
    files[f"{info()}/WHEEL"] = wheel_file(tag).encode()
    files[f"{info()}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    files[f"{info()}/RECORD"] = record(files, f"{info()}/RECORD").encode()
    name = f"{distribution()}-{tag}.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, contents in files.items():
            wheel.writestr(zipfile.ZipInfo(path), contents, zipfile.ZIP_DEFLATED)
    return name
