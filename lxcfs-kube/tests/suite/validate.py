"""Validates Kubernetes objects against the published schemas of several releases.

Reads a JSON list of [least minor release, object] from standard input; the arguments are
the minor releases to validate against. Prints one line per problem, exits 1 if any.
"""

import json
import sys

import kubernetes_validate

problems = 0
for least, thing in json.load(sys.stdin):
    for minor in map(int, sys.argv[1:]):
        name = f"1.{minor} {thing['kind']} {thing['metadata']['name']}"
        try:
            kubernetes_validate.validate(thing, f"1.{minor}", strict=True)
            known = True
        except kubernetes_validate.SchemaNotFoundError:
            known = False
        except kubernetes_validate.ValidationError as error:
            print(f"{name}: {error.message} at {list(error.path)}")
            problems += 1
            continue
        if known != (minor >= least):
            print(f"{name}: {'known' if known else 'no such kind'}, expected from 1.{least} on")
            problems += 1
sys.exit(1 if problems else 0)
