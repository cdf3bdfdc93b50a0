# manifest.py FILE: holds a Kubernetes manifest against the types of the API, as the
# Python client has them: no unknown field, none of another type, none that is
# required missing.  Prints the kinds that it found.
import re
import sys

import yaml
from kubernetes import client


def check(value, kind, path):
    inner = re.match(r"(list|dict)(?:\[|\(str, )(.*)[\])]$", kind)
    if inner and inner[1] == "list":
        assert isinstance(value, list), f"{path}: not a list"
        return [check(item, inner[2], f"{path}[]") for item in value]
    if inner:
        assert isinstance(value, dict), f"{path}: not a map"
        return {key: check(item, inner[2], f"{path}.{key}") for key, item in value.items()}
    if kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, f"{path}: not of type {kind}: {value}"
        return value
    if kind == "object":
        return value
    model = getattr(client, kind)
    assert isinstance(value, dict), f"{path}: not a {kind}"
    names = {name: attribute for attribute, name in model.attribute_map.items()}
    for name in value:
        assert name in names, f"{path}: {kind} has no field {name}"
    return model(**{names[name]: check(item, model.openapi_types[names[name]], f"{path}.{name}") for name, item in value.items()})


for document in yaml.safe_load_all(open(sys.argv[1])):
    print(document["kind"])
    check(document, "V1" + document["kind"], document["kind"])
