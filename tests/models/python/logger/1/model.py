"""A line of each level to the server's log."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        pb_utils.Logger.log_info("in initialize")

    def execute(self, requests):
        log = pb_utils.Logger
        log.log("by default")
        log.log("level info", log.INFO)
        log.log("level warning", log.WARNING)
        log.log("level error", log.ERROR)
        log.log("level verbose", log.VERBOSE)
        log.log_info("log_info")
        log.log_warn("log_warn")
        log.log_error("log_error")
        log.log_verbose("log_verbose")
        log.log_info("two\nlines \x1b[31m \u00e9")
        print("printed\x1b[31m")
        return [
            pb_utils.InferenceResponse([
                pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy())
            ])
            for request in requests
        ]

    def finalize(self):
        pb_utils.Logger.log_info("in finalize")
