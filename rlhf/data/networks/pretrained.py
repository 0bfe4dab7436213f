"""Opens networks of transformers whole."""

from typing import Any


def load_whole(architecture: Any, name: str, **settings: Any) -> Any:
    """Returns a network of the class `architecture` from a folder or hub name, with its `settings`.

    Raises ValueError if tensors are missing, which transformers would fill with random numbers, and OSError, ValueError
    or RuntimeError as transformers does.
    """
    model, report = architecture.from_pretrained(name, output_loading_info=True, **settings)
    if lost := sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"]))):
        raise ValueError(f"{len(lost)} tensors are missing, such as {lost[0]}")
    return model
