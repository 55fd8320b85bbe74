"""The module to watch, as the user gave it: inside what wraps it, or a clear refusal."""

from torch import nn


def unwrapped_model(model: nn.Module, with_outputs: bool) -> nn.Module:
    """The module whose layers carry the user's names, or a clear refusal."""
    if isinstance(model, nn.DataParallel):
        raise TypeError(
            "Expected a module, but got nn.DataParallel, whose replicas live for one forward pass "
            "only. Use DistributedDataParallel, or pass `model.module` and one device."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrapped_model(model.module, with_outputs)
    compiled_from = getattr(model, "_orig_mod", None)
    if isinstance(compiled_from, nn.Module):
        if with_outputs:
            raise TypeError(
                "Expected an uncompiled module, but got one from torch.compile, which would "
                "silently skip hooks added now. Give the Recorder the module before it is "
                "compiled, and then compile; or record the parameters only: "
                "`measures=PARAMETER_MEASURES`."
            )
        return unwrapped_model(compiled_from, with_outputs)
    wrappers = {type(module).__name__ for module in model.modules()}
    types = {type(parameter).__name__ for parameter in model.parameters()}
    if "FullyShardedDataParallel" in wrappers or "DTensor" in types:
        raise TypeError(
            "Expected whole parameters, but got sharded ones (FSDP, tensor parallel). gradflow "
            "cannot record those yet: train with DistributedDataParallel to record."
        )
    return model
