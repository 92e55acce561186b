"""ModelConfig, which auto_complete_config gets and returns: a configuration that may be completed, not changed."""

from __future__ import annotations

import json
from typing import Any


class ModelConfig:
    """Wraps the configuration's JSON; setters raise ValueError where they contradict what the file says."""

    __module__ = "triton_python_backend_utils"

    def __init__(self, model_config: str) -> None:
        self._model_config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        """The configuration itself, not a copy."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        configured = self._model_config["max_batch_size"]
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in auto-complete-config function for model "
                f"'{self._model_config['name']}' specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        for scheduler in ("sequence_batching", "ensemble_scheduling"):
            if scheduler in self._model_config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{scheduler}', but auto-complete-config function "
                    f"for model '{self._model_config['name']}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def add_input(self, input: dict[str, Any]) -> None:
        allowed = ("name", "data_type", "dims", "optional")
        self._add("input", input, allowed, "'name', 'data_type', 'dims' and 'optional'")

    def add_output(self, output: dict[str, Any]) -> None:
        self._add("output", output, ("name", "data_type", "dims"), "'name', 'data_type' and 'dims'")

    def set_model_transaction_policy(self, transaction_policy_dict: dict[str, Any]) -> None:
        name = self._model_config["name"]
        for key in transaction_policy_dict:
            if key != "decoupled":
                raise ValueError(
                    f"model transaction property in auto-complete-config function for model '{name}' contains property "
                    "other than 'decoupled'."
                )
        policy = self._model_config.setdefault("model_transaction_policy", {})
        if "decoupled" in transaction_policy_dict:
            wanted = transaction_policy_dict["decoupled"]
            if policy.get("decoupled", wanted) != wanted:
                raise ValueError(
                    f"trying to change decoupled property in auto-complete-config for model '{name}', which is already "
                    f"set to '{policy['decoupled']}'."
                )
            policy["decoupled"] = wanted

    def _add(self, kind: str, given: dict[str, Any], allowed: tuple[str, ...], listed: str) -> None:
        model = self._model_config["name"]
        where = f"in auto-complete-config function for model '{model}'"
        for key in given:
            if key not in allowed:
                raise ValueError(f"{kind} '{given['name']}' {where} contains property other than {listed}.")
        if "name" not in given:
            raise ValueError(f"{kind} {where} is missing 'name' property.")
        name = given["name"]
        for key in ("data_type", "dims"):
            if key not in given:
                raise ValueError(f"{kind} '{name}' {where} is missing '{key}' property.")
        for present in self._model_config[kind]:
            if present["name"] == name:
                self._complete(model, kind, present, given)
                return
        self._model_config[kind].append(given)

    @staticmethod
    def _complete(model: str, kind: str, present: dict[str, Any], given: dict[str, Any]) -> None:
        name = given["name"]
        if present["data_type"] not in ("TYPE_INVALID", given["data_type"]):
            raise ValueError(
                f"unable to load model '{model}', configuration expects datatype {present['data_type']} for {kind} "
                f"'{name}', model provides {given['data_type']}"
            )
        if present["dims"] and present["dims"] != given["dims"]:
            raise ValueError(
                f"model '{model}', tensor '{name}': the model expects dims {given['dims']} but the model configuration "
                f"specifies dims {present['dims']}"
            )
        # Only inputs have it: an output with it has been refused.
        if "optional" in present and "optional" in given and present["optional"] != given["optional"]:
            raise ValueError(
                f"model '{model}', tensor '{name}': the model expects optional {given['optional']} but the model "
                f"configuration specifies optional {present['optional']}"
            )
        present.update({key: given[key] for key in ("data_type", "dims", "optional") if key in given})
