"""Classification extension: the k greatest elements of an output as ``<value>:<index>[:<label>]`` strings.

Native only (``wire/classify.pxd``); `triton_fast._native.wire.json_reply.encode` reaches it.
"""
