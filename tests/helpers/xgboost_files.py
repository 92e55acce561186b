"""XGBoost models as files without xgboost: boosted trees of scikit-learn in its JSON, UBJSON and old binary form.

Knows the formats and scikit-learn's trees; knows no backend.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Node:
    """A leaf has no children; of a split, what is below ``value`` goes left."""

    left: int
    right: int
    parent: int
    feature: int
    value: float


def trees(model: Any) -> list[list[Node]]:
    """The trees of a regressor, or of a classifier of two classes; leaves are scaled by its learning rate."""
    found = []
    for (estimator,) in model.estimators_:
        tree = estimator.tree_
        parents = np.full(tree.node_count, 2**31 - 1)
        for at in range(tree.node_count):
            for child in (tree.children_left[at], tree.children_right[at]):
                if child >= 0:
                    parents[child] = at
        nodes = []
        for at in range(tree.node_count):
            leaf = tree.children_left[at] < 0
            # scikit-learn's rule is <=, XGBoost's is <: the next number of FP32.
            split = np.nextafter(np.float32(tree.threshold[at]), np.float32(np.inf), dtype=np.float32)
            value = float(tree.value[at].item() * model.learning_rate) if leaf else float(split)
            nodes.append(Node(int(tree.children_left[at]), int(tree.children_right[at]), int(parents[at]),
                              0 if leaf else int(tree.feature[at]), value))  # fmt: skip
        found.append(nodes)
    return found


def base_score(model: Any) -> float:
    """What the trees are added to: of a classifier the probability of its second class."""
    start = model.init_
    return float(np.float32(start.class_prior_[1] if hasattr(start, "class_prior_") else start.constant_.item()))


def as_json(model: Any, objective: str = "reg:squarederror") -> bytes:
    return json.dumps(_document(model, objective)).encode()


def as_ubjson(model: Any, objective: str = "reg:squarederror") -> bytes:
    return _ubjson(_document(model, objective))


def _ubjson(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b"".join(_sized(key) + _ubjson(one) for key, one in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b"".join(map(_ubjson, value)) + b"]"
    if isinstance(value, str):
        return b"S" + _sized(value)
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    return b"l" + struct.pack(">i", value)


def _sized(text: str) -> bytes:
    return b"L" + struct.pack(">q", len(text)) + text.encode()


def _document(model: Any, objective: str) -> Any:
    features = str(model.n_features_in_)
    made = []
    for number, nodes in enumerate(trees(model)):
        count = len(nodes)
        made.append({
            "base_weights": [0.0] * count, "categories": [], "categories_nodes": [], "categories_segments": [],
            "categories_sizes": [], "default_left": [0] * count, "id": number,
            "left_children": [node.left for node in nodes], "loss_changes": [0.0] * count,
            "parents": [node.parent for node in nodes], "right_children": [node.right for node in nodes],
            "split_conditions": [node.value for node in nodes], "split_indices": [node.feature for node in nodes],
            "split_type": [0] * count, "sum_hessian": [1.0] * count,
            "tree_param": {"num_deleted": "0", "num_feature": features, "num_nodes": str(count),
                           "size_leaf_vector": "1"},
        })  # fmt: skip
    booster = {
        "name": "gbtree",
        "model": {"gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(made))},
                  "tree_info": [0] * len(made), "trees": made},
    }  # fmt: skip
    learner = {
        "attributes": {}, "feature_names": [], "feature_types": [], "gradient_booster": booster,
        "learner_model_param": {"base_score": repr(base_score(model)), "boost_from_average": "1", "num_class": "0",
                                "num_feature": features, "num_target": "1"},
        "objective": {"name": objective, "reg_loss_param": {"scale_pos_weight": "1"}},
    }  # fmt: skip
    return {"learner": learner, "version": [2, 0, 0]}


def as_binary(model: Any, objective: str = "reg:linear") -> bytes:
    """The form of XGBoost before 1.0, which releases up to 2 could write."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    found = trees(model)
    features = model.n_features_in_
    start = base_score(model)
    # Releases before 1.0 wrote what the trees are added to, later ones a probability.
    start = math.log(start / (1 - start)) if objective.startswith("binary:") else start
    parts = [struct.pack("<fIiiiII27i", start, features, 0, 0, 0, 0, 90, *[0] * 27)]
    parts += [
        text(objective),
        text("gbtree"),
        struct.pack("<iiiiqii32i", len(found), 1, features, 0, 0, 1, 0, *[0] * 32),
    ]
    for nodes in found:
        parts.append(struct.pack("<iiiiii31i", 1, len(nodes), 0, 0, features, 0, *[0] * 31))
        for at, node in enumerate(nodes):
            # A parent's highest bit says whether this is its left child.
            parent = -1 if at == 0 else node.parent | (1 << 31 if nodes[node.parent].left == at else 0)
            parts.append(struct.pack("<IiiIf", parent & 0xFFFFFFFF, node.left, node.right, node.feature, node.value))
        parts += [struct.pack("<fffi", 0.0, 1.0, 0.0, 0)] * len(nodes)
    parts.append(struct.pack(f"<{len(found)}i", *[0] * len(found)))
    return b"".join(parts)
