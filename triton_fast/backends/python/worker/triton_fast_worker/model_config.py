"""``ModelConfig``: what ``auto_complete_config`` is given and changes."""

from __future__ import annotations

from typing import Any

_IN = "in auto-complete-config function for model"


class ModelConfig:
    """A model's configuration as a dict of its protobuf fields, with checked setters.

    Every setter raises ValueError when what it sets contradicts what the configuration says.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        config.setdefault("max_batch_size", 0)
        config.setdefault("input", [])
        config.setdefault("output", [])

    def as_dict(self) -> dict[str, Any]:
        """Return the dict itself."""
        return self._config

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def set_max_batch_size(self, max_batch_size: int) -> None:
        given = self._config["max_batch_size"]
        if given > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {given}, but {_IN} '{self._name}' specified max_batch_size "
                f"{max_batch_size}"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{other}', but auto-complete-config function for "
                    f"model '{self._name}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._config.setdefault("dynamic_batching", {})

    def add_input(self, tensor: dict[str, Any]) -> None:
        self._add("input", tensor, ("name", "data_type", "dims", "optional"), "'name', 'data_type', 'dims' and 'optional'")

    def add_output(self, tensor: dict[str, Any]) -> None:
        self._add("output", tensor, ("name", "data_type", "dims"), "'name', 'data_type' and 'dims'")

    def _add(self, kind: str, tensor: dict[str, Any], known: tuple[str, ...], names: str) -> None:
        where = f"{_IN} '{self._name}'"
        extra = [key for key in tensor if key not in known]
        if extra:
            raise ValueError(
                f"{kind} '{tensor.get('name', '')}' {where} contains property other than {names}."
            )
        if "name" not in tensor:
            raise ValueError(f"{kind} {where} is missing 'name' property.")
        name = tensor["name"]
        for key in ("data_type", "dims"):
            if key not in tensor:
                raise ValueError(f"{kind} '{name}' {where} is missing '{key}' property.")
        for entry in self._config[kind]:
            if entry.get("name") == name:
                self._merge(kind, entry, tensor)
                return
        self._config[kind].append(dict(tensor))

    def _merge(self, kind: str, entry: dict[str, Any], tensor: dict[str, Any]) -> None:
        name = tensor["name"]
        given_type = entry.get("data_type", "TYPE_INVALID")
        if given_type in ("", "TYPE_INVALID"):
            entry["data_type"] = tensor["data_type"]
        elif given_type != tensor["data_type"]:
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {given_type} for {kind} "
                f"'{name}', model provides {tensor['data_type']}"
            )
        given_dims = [int(dim) for dim in entry.get("dims", ())]
        if not given_dims:
            entry["dims"] = tensor["dims"]
        elif given_dims != list(tensor["dims"]):
            raise ValueError(
                f"model '{self._name}', tensor '{name}': the model expects dims {tensor['dims']} but the model "
                f"configuration specifies dims {given_dims}"
            )
        if kind == "input" and "optional" in tensor:
            if "optional" in entry and bool(entry["optional"]) != bool(tensor["optional"]):
                raise ValueError(
                    f"model '{self._name}', tensor '{name}': the model expects optional {tensor['optional']} but the "
                    f"model configuration specifies optional {entry['optional']}"
                )
            entry["optional"] = tensor["optional"]

    def set_model_transaction_policy(self, policy: dict[str, Any]) -> None:
        if any(key != "decoupled" for key in policy):
            raise ValueError(
                f"model transaction property {_IN} '{self._name}' contains property other than 'decoupled'."
            )
        given = self._config.get("model_transaction_policy")
        if given is None:
            self._config["model_transaction_policy"] = dict(policy)
        elif "decoupled" in policy:
            now = bool(given.get("decoupled", False))
            if now != bool(policy["decoupled"]):
                raise ValueError(
                    f"trying to change decoupled property in auto-complete-config for model '{self._name}', which is "
                    f"already set to '{now}'."
                )
