"""An accelerator where there is none: its tensors lie on the CPU but say that they do not, and refuse to meet others.

`FarDevice` is a context in which ``torch.device("lazy")``, a kind of device that no build of torch serves by itself,
stands in for a GPU: what is moved to it or made on it computes as on the CPU, and an operation of tensors of both
devices is the error that it is on a GPU. As there, numbers (tensors without dimensions) and indices may come from the
CPU. Run as a program, it takes a tiny stream through a method: ``far_device.py FOLDER METHOD``.
"""

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

KIND = "lazy"
DEVICE = torch.device(KIND, 0)
aten = torch.ops.aten
# Of a run: enough to tell a loss that differs. Checkpoints are pickled, which tensors of this device cannot be.
SHORT = {"save_steps": 1000, "max_updates_per_task": 2}
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)


class FarTensor(torch.Tensor):
    """A tensor of the far device."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "FarTensor":
        layout = {"dtype": near.dtype, "layout": near.layout, "device": DEVICE}
        where = {"strides": near.stride(), "storage_offset": near.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, near.shape, **layout, **where)

    def __init__(self, near: torch.Tensor) -> None:
        self.near = near

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with Operations():
            return function(*args, **(kwargs or {}))


def nearer(one: Any) -> Any:
    return one.near if isinstance(one, FarTensor) else one


def farther(one: Any) -> Any:
    return FarTensor(one) if isinstance(one, torch.Tensor) and not isinstance(one, FarTensor) else one


class Operations(TorchDispatchMode):
    """Computes on the CPU and keeps the account of who lies where."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        far = any(isinstance(one, FarTensor) for one in tensors)
        near = any(not isinstance(one, FarTensor) and one.dim() > 0 for one in tensors)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if far and near and function not in COPIES and not (function in INDEXED and isinstance(first, FarTensor)):
            raise RuntimeError(f"{function} of tensors on both devices")
        if kwargs.get("device") is not None:
            far = torch.device(kwargs["device"]).type == KIND
            kwargs["device"] = "cpu" if far else kwargs["device"]
        result = function(*tree_map(nearer, args), **tree_map(nearer, kwargs))
        written = function._schema.arguments[0].alias_info if function._schema.arguments else None
        if first is not None and function._schema.name.endswith("_") and written is not None and written.is_write:
            return first
        return tree_map(farther, result) if far else result


class Functions(TorchFunctionMode):
    """What does not pass through operations, or asks the device's own code."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name in ("tensor", "as_tensor") and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if name in ("matmul", "__matmul__") and args[0].dim() == 1 and args[1].dim() == 2:
            return torch.mv(args[1].T, args[0])  # torch squeezes the result in place
        if name == "__setitem__" and isinstance(args[0], FarTensor) and not isinstance(args[2], torch.Tensor):
            args[0].near[tree_map(nearer, args[1])] = args[2]
            return None
        if name == "__getitem__" and isinstance(args[0], FarTensor) and isinstance(args[1], list):
            return function(args[0], torch.tensor(args[1], dtype=torch.long))  # torch makes it on the device
        if name == "tolist" and isinstance(args[0], FarTensor):
            return args[0].near.tolist()
        return function(*args, **kwargs)


class FarDevice(ExitStack):
    """The context in which there is a far device, which accelerate and the Trainer choose."""

    def __enter__(self) -> "FarDevice":
        import peft.peft_model
        import transformers
        from torch.amp import autocast_mode

        from himalaya_adapter.training import online_ewc

        begin, prepared = autocast_mode.autocast.__init__, transformers.Trainer._prepare_inputs
        state, save = peft.peft_model.get_peft_model_state_dict, online_ewc.save_file
        enabled = torch.is_autocast_enabled
        setup = transformers.TrainingArguments._setup_devices
        replaced = [
            # The far device has no autocast and no inference mode of its own.
            (autocast_mode.autocast, "__init__", lambda self, device, *a, **k: begin(self, "cpu", *a, **k)),
            (torch, "is_autocast_enabled", lambda device=None: enabled("cpu")),
            (torch, "inference_mode", lambda mode=True: torch.no_grad()),
            (transformers.TrainingArguments, "device", property(lambda self: (setup.__get__(self), DEVICE)[1])),
            (
                transformers.Trainer,
                "_prepare_inputs",
                lambda s, x: {k: v.to(DEVICE) for k, v in prepared(s, x).items()},
            ),
            # Files are written from the memory of the CPU.
            (
                peft.peft_model,
                "get_peft_model_state_dict",
                lambda *a, **k: {n: t.cpu() for n, t in state(*a, **k).items()},
            ),
            (online_ewc, "save_file", lambda found, path: save({n: t.cpu() for n, t in found.items()}, path)),
        ]
        for place, name, value in replaced:
            self.enter_context(mock.patch.object(place, name, value))
        self.enter_context(mock.patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": str(DEVICE)}))
        swapped = torch.__future__.get_swap_module_params_on_conversion()
        self.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        torch.__future__.set_swap_module_params_on_conversion(True)
        self.enter_context(Functions())
        self.enter_context(Operations())
        return self


def main(folder: Path, method: str) -> None:
    import conftest
    import tiny_runs

    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.training.stream_runner import run_stream

    logging.disable(logging.WARNING)
    tokenizer = conftest.tiny_tokenizer.__wrapped__()
    tiny_runs.write_backbone(folder / "backbone", conftest.tiny_model.__wrapped__(tokenizer), tokenizer)
    tiny_runs.write_stream(folder)
    launch = compose_run([*tiny_runs.run_words(folder, method, **SHORT)[1:], f"results_dir={folder / 'far'}"])
    with FarDevice():
        run_stream(launch.run, launch.results_dir)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
