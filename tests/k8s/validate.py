"""Validate manifests strictly:  validate.py --versions V [V ...] -- FILE [FILE ...]

Lists are taken apart, and a KServe predictor is validated as the pod that KServe makes of it. Objects of
operators, which have no schema here, are counted and named. With --doorward the program reads the settings in
ConfigMaps, as the webhook and the jobs will."""

import argparse
import collections
import copy
import os
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

# Fields of a predictor that are not a pod's.
PREDICTOR = {"minReplicas", "maxReplicas", "annotations", "labels", "deploymentStrategy", "timeout"}
OPERATORS = ("cert-manager.io/", "monitoring.coreos.com/")
# In tests/golden/k8s/list-not-asked.yaml, to show that it is kept.
TOMORROW = "fieldOfTomorrow"


def objects(document):
    if document is None:
        return
    if document["kind"] == "List":
        for item in document["items"]:
            yield from objects(item)
        return
    document = copy.deepcopy(document)
    if document["kind"] == "InferenceService":
        predictor = document["spec"]["predictor"]
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": document["metadata"]["name"],
                "annotations": predictor.get("annotations", {}),
                "labels": predictor.get("labels", {}),
            },
            "spec": {key: value for key, value in predictor.items() if key not in PREDICTOR},
        }
    if document["kind"] == "Pod":
        document["spec"].pop(TOMORROW, None)
        # What the API server makes of it.
        metadata = document["metadata"]
        metadata["name"] = metadata.pop("generateName", "") + metadata.get("name", "x7k2p")
    yield document


def read_settings(doorward, text, injection):
    """An error of the program's, or nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        if injection:
            command = [doorward, "inject", "-c", file.name, "-f", os.devnull]
        else:
            command = [doorward, "config", "show", file.name]
        run = subprocess.run(command, capture_output=True, text=True)
    return run.stderr if run.returncode else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doorward")
    parser.add_argument("--versions", nargs="+", required=True)
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    valid, read, skipped, failed = 0, 0, collections.Counter(), []
    for file in arguments.files:
        with open(file) as stream:
            found = [item for document in yaml.safe_load_all(stream) for item in objects(document)]
        for item in found:
            if item["apiVersion"].startswith(OPERATORS):
                skipped[item["kind"]] += 1
                continue
            if item["kind"] == "ConfigMap" and arguments.doorward:
                for key, text in item["data"].items():
                    error = read_settings(arguments.doorward, text, key == "injection.toml")
                    read += 1
                    if error:
                        failed.append(f"{file}: {item['metadata']['name']}: {key}: {error}")
            for version in arguments.versions:
                try:
                    kubernetes_validate.validate(item, version, strict=True)
                    valid += 1
                except Exception as error:
                    name = f"{item['kind']} {item['metadata']['name']}"
                    failed.append(f"{file}: {name}: {version}: {error}")
    for failure in failed:
        print(failure, file=sys.stderr)
    print(f"{valid} validations passed, {len(failed)} failed, of {len(arguments.files)} files and "
          f"{len(arguments.versions)} versions; {read} settings read; without a schema here: {dict(skipped)}")
    sys.exit(1 if failed or not valid else 0)


main()
