"""Finds mistakes in configurations of Ray Serve."""

from typing import Any

import yaml

from rlhf.commands.cluster_check.unknown_keys import find_unknown
from serve.settings import ServiceSettings


def read_services(text: str, where: str = "serveConfigV2") -> tuple[list[str], list[ServiceSettings]]:
    """Returns the problems of a Serve config, and the settings of its applications.

    Problems are unknown keys, which Ray Serve tolerates, and wrong arguments of our builder.
    """
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    services: list[ServiceSettings] = []
    try:
        record = yaml.safe_load(text) or {}
        ServeDeploySchema.model_validate(record)
        problems = _unknown_fields(where, record, ServeDeploySchema)
        for application in record["applications"]:
            if application["import_path"] != "serve.application:build":
                problems.append(f"import_path: {application['import_path']}; needs serve.application:build")
            services.append(ServiceSettings.model_validate(application.get("args", {})))
    except ValidationError as error:
        return [f"{where}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()], []
    except yaml.YAMLError as error:
        return [f"{where}: not YAML ({error})"], []
    return problems, services


def _unknown_fields(where: str, record: Any, model: Any) -> list[str]:
    """Returns keys that a pydantic model does not name, at any depth; dictionaries of free content are not checked."""
    from typing import get_args

    if isinstance(record, list):
        return [p for i, item in enumerate(record) for p in _unknown_fields(f"{where}.{i}", item, model)]
    if not isinstance(record, dict) or not hasattr(model, "model_fields"):
        return []
    problems = find_unknown(where, record, set(model.model_fields))
    for key, field in model.model_fields.items():
        inner = [field.annotation, *get_args(field.annotation)]
        inner = [i for i in inner if hasattr(i, "model_fields")]
        if key in record and inner:
            problems += _unknown_fields(f"{where}.{key}", record[key], inner[0])
    return problems
