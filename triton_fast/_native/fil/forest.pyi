"""A model that treelite has read. Source: ext/triton_fast/_native/fil/forest.pyx."""

class Forest:
    """A model file, read and walked through: no node, feature or value of it lies outside of its memory.

    Reading a hostile file may end the process; see backends/fil/probe.py.

    Parameters
    ----------
    path
        Of the file.
    kind
        ``xgboost``, ``xgboost_json``, ``xgboost_ubj``, ``lightgbm`` or ``treelite_checkpoint``.
    unknown_fields
        Whether fields that treelite does not know may stand in XGBoost's JSON and UBJSON.

    Attributes
    ----------
    width
        Scores of a row: targets x classes.
    task
        0 binary, 1 regression, 2 multi-class, 3 ranking, 4 isolation forest.

    Raises
    ------
    InvalidArg
        The file can not be read, or is corrupt.
    """

    features: int
    width: int
    vector_leaves: bool
    task: int
    trees: int
    postprocessor: str
    threshold_type: str

    def __init__(self, path: str, kind: str, unknown_fields: bool = False) -> None: ...
    def set_postprocessor(self, name: str) -> None:
        """Change what is done with the sums. Not once an instance runs."""
    def serialize(self) -> bytes:
        """Return the model as it is now, as a treelite checkpoint."""
