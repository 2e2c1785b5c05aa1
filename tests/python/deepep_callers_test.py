# SPDX-License-Identifier: Apache-2.0
"""HybridEPBuffer as trainers and engines use it: layers with gradients, probes and imports."""

import inspect
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
import unittest

try:
    import torch
except ImportError:
    raise unittest.SkipTest("PyTorch is not installed") from None

import hybridep
import hybridep.deepep as deep_ep
from gang import Gang

HIDDEN = 32
NUM_LOCAL_EXPERTS = 2
TOP_K = 3
TOKENS = [20, 13, 7, 16]

gangs = {}


def setUpModule():
    for num_ranks in (2, 4):
        gangs[num_ranks] = Gang(num_ranks)


def tearDownModule():
    for gang in gangs.values():
        gang.close()


def run_all(case, *arguments):
    for gang in gangs.values():
        gang.run(case, *arguments)


# --------------------------------------------------------------------------- a layer in plain torch


class Layer:
    """The tokens of a rank, and what a layer returns whose expert e multiplies by 1 or 2. All sums
    are exact in BF16.
    """

    def __init__(self, rank, num_ranks):
        random = torch.Generator().manual_seed(rank)
        count = TOKENS[rank]
        self.num_experts = num_ranks * NUM_LOCAL_EXPERTS
        self.ids = torch.stack(
            [torch.randperm(self.num_experts, generator=random)[:TOP_K] for _ in range(count)]
        )
        self.ids[0, 1] = -1
        self.weights = 2.0 ** torch.randint(0, 2, (count, TOP_K), generator=random)
        self.x = torch.randint(-1, 2, (count, HIDDEN), generator=random).bfloat16()
        self.gradient = torch.randint(-1, 2, (count, HIDDEN), generator=random).bfloat16()
        self.routing_map, self.probs = self._dense()

    def _dense(self):
        selected = torch.zeros(len(self.ids), self.num_experts, dtype=torch.bool)
        probs = torch.zeros(len(self.ids), self.num_experts)
        for token, k in (self.ids >= 0).nonzero().tolist():
            selected[token, self.ids[token, k]] = True
            probs[token, self.ids[token, k]] = self.weights[token, k]
        return selected, probs

    def expected(self):
        """Output, and gradients of x and of dense probs."""
        x, probs = self.x.double().requires_grad_(), self.probs.double().requires_grad_()
        factors = torch.tensor([1.0 + expert % 2 for expert in range(self.num_experts)]).double()
        chosen = probs * self.routing_map * factors
        out = (chosen.unsqueeze(-1) * x.unsqueeze(1)).sum(1)
        out.backward(self.gradient.double())
        return out.detach().bfloat16(), x.grad.bfloat16(), probs.grad.float()

    def check(self, forward, weights, choose=lambda dense, layer: dense):
        """Runs forward(x, weights), and its backward pass on a thread of its own.

        choose  the expected gradient of weights, of that of dense probs
        """
        x, weights = self.x.clone().requires_grad_(), weights.clone().requires_grad_()
        out = forward(x, weights)
        thread = threading.Thread(target=out.backward, args=(self.gradient,))
        thread.start()
        thread.join()
        expected = self.expected()
        assert torch.equal(out, expected[0])
        assert torch.equal(x.grad, expected[1])
        assert torch.equal(weights.grad, choose(expected[2], self))


def experts(rows, row_probs, tokens_per_expert):
    """Local expert e multiplies its rows by 1 + e % 2, and by their probs."""
    factors = torch.repeat_interleave(
        torch.tensor([1.0, 2.0][:NUM_LOCAL_EXPERTS]), torch.as_tensor(tokens_per_expert)
    )
    used = len(factors)
    made = rows[:used].float() * (row_probs[:used] * factors).unsqueeze(1)
    return torch.nn.functional.pad(made, (0, 0, 0, len(rows) - used)).bfloat16()


def new_buffer(**options):
    group = torch.distributed.group.WORLD
    return deep_ep.HybridEPBuffer(
        group=group,
        hidden_dim=HIDDEN,
        max_num_of_tokens_per_rank=max(TOKENS),
        num_local_experts=NUM_LOCAL_EXPERTS,
        **options,
    )


# ---------------------------------------------------------------------------- Megatron-LM's pattern


class MapDispatch(torch.autograd.Function):
    """Map and dense probs; the handle stays in the context and goes on to the combine."""

    @staticmethod
    def forward(ctx, x, routing_map, probs, buffer, options):
        fused = {}
        if "fuse_permute_dispatch" in inspect.signature(buffer.dispatch_with_permute).parameters:
            fused["fuse_permute_dispatch"] = True
        rows, row_probs, _, tokens_per_expert, handle = buffer.dispatch_with_permute(
            hidden=x,
            routing_map=routing_map,
            probs=probs,
            scaling_factor=None,
            num_of_experts_per_rank=NUM_LOCAL_EXPERTS,
            **options,
            **fused,
        )
        ctx.buffer, ctx.handle, ctx.pad_multiple = buffer, handle, options["pad_multiple"]
        return rows, row_probs, tokens_per_expert, handle

    @staticmethod
    def backward(ctx, row_gradients, prob_gradients, _, __):
        x, probs = ctx.buffer.combine_with_unpermute(
            hidden=row_gradients,
            probs=prob_gradients,
            handle=ctx.handle,
            pad_multiple=ctx.pad_multiple,
        )
        return x, None, probs, None, None


class MapCombine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, buffer, handle, pad_multiple):
        out, _ = buffer.combine_with_unpermute(
            hidden=rows, handle=handle, pad_multiple=pad_multiple
        )
        ctx.buffer, ctx.handle, ctx.pad_multiple = buffer, handle, pad_multiple
        ctx.num_rows = rows.shape[0]
        return out

    @staticmethod
    def backward(ctx, gradient):
        rows, _, _, _, _ = ctx.buffer.dispatch_with_permute(
            hidden=gradient,
            scaling_factor=None,
            handle=ctx.handle,
            num_permuted_tokens=ctx.num_rows,
            pad_multiple=ctx.pad_multiple,
        )
        return rows, None, None, None


def map_layer(rank, num_ranks, options):
    buffer, layer = new_buffer(), Layer(rank, num_ranks)
    overflowed = torch.zeros(1, dtype=torch.bool)

    def forward(x, probs):
        nonlocal overflowed
        rows, row_probs, tokens_per_expert, handle = MapDispatch.apply(
            x, layer.routing_map, probs, buffer, options
        )
        overflowed |= handle[-1] != 0
        results = experts(rows, row_probs, tokens_per_expert)
        return MapCombine.apply(results, buffer, handle, options["pad_multiple"])

    for _ in range(2):
        layer.check(forward, layer.probs)
    assert not overflowed.item()
    assert not buffer.group != torch.distributed.group.WORLD
    assert not buffer.configurer.buffer_config.hidden_dim < HIDDEN
    assert not buffer.configurer.buffer_config.max_num_of_tokens_per_rank < max(TOKENS)
    assert not buffer.configurer.buffer_config.num_of_experts_per_rank < NUM_LOCAL_EXPERTS


# ------------------------------------------------------------------------- NeMo Automodel's pattern


class IdDispatch(torch.autograd.Function):
    """Ids with -1 and dense probs. The handle serves again when activations are recomputed."""

    @staticmethod
    def forward(ctx, x, ids, probs, buffer, state):
        if "handle" in state:
            rows, row_probs, _, _, handle = buffer.dispatch_with_permute(
                hidden=x,
                probs=probs,
                handle=state["handle"],
                num_permuted_tokens=state["num_rows"],
                pad_multiple=16,
            )
        else:
            rows, row_probs, _, state["sizes"], handle = buffer.dispatch_with_permute(
                hidden=x,
                topk_idx=ids,
                probs=probs,
                num_of_experts=NUM_LOCAL_EXPERTS * buffer.group_size,
                pad_multiple=16,
            )
            state["handle"], state["num_rows"] = handle, state["sizes"].sum()
        ctx.buffer, ctx.handle = buffer, handle
        return rows, row_probs

    @staticmethod
    def backward(ctx, row_gradients, prob_gradients):
        x, probs = ctx.buffer.combine_with_unpermute(
            hidden=row_gradients, probs=prob_gradients, handle=ctx.handle, pad_multiple=16
        )
        return x, None, probs, None, None


def recomputed_layer(rank, num_ranks):
    from torch.utils.checkpoint import checkpoint

    buffer, layer, state = new_buffer(use_fp8=False), Layer(rank, num_ranks), {}

    def block(x, probs):
        rows, row_probs = IdDispatch.apply(x, layer.ids, probs, buffer, state)
        results = experts(rows, row_probs, state["sizes"])
        return MapCombine.apply(results, buffer, state["handle"], 16)

    layer.check(lambda x, probs: checkpoint(block, x, probs, use_reentrant=False), layer.probs)


# ------------------------------------------------------ torchtitan's pattern, which prime-rl shares


class WeightDispatch(torch.autograd.Function):
    """Weights of ids, made dense first. The gradient is gathered at the ids."""

    @staticmethod
    def forward(ctx, x, ids, weights, buffer, options):
        from hybridep.deepep.hybrid_ep_buffer import indices_to_map

        routing_map, probs = indices_to_map(
            ids, weights, x.shape[0], NUM_LOCAL_EXPERTS * buffer.group_size
        )
        rows, row_probs, _, sizes, handle = buffer.dispatch_with_permute(
            hidden=x, routing_map=routing_map, probs=probs, **options
        )
        ctx.buffer, ctx.handle, ctx.ids = buffer, handle, ids
        return rows, row_probs, sizes, handle

    @staticmethod
    def backward(ctx, row_gradients, prob_gradients, _, __):
        x, dense = ctx.buffer.combine_with_unpermute(
            hidden=row_gradients, probs=prob_gradients, handle=ctx.handle
        )
        return x, None, at_ids(dense, ctx.ids), None, None


def at_ids(dense, ids):
    return dense.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, 0)


def weight_layer(rank, num_ranks, options):
    buffer = new_buffer(
        num_sms_dispatch_api=16,
        num_sms_combine_api=16,
        load_cached_kernels=True,
        use_shared_buffer=True,
        enable_custom_allgather=True,
    )
    layer = Layer(rank, num_ranks)

    def forward(x, weights):
        rows, row_probs, sizes, handle = WeightDispatch.apply(
            x, layer.ids, weights, buffer, options
        )
        return MapCombine.apply(experts(rows, row_probs, sizes), buffer, handle, None)

    layer.check(forward, layer.weights, lambda dense, layer: at_ids(dense, layer.ids))


# ----------------------------------------------------------------------------------- vLLM's pattern


def inference(rank, num_ranks):
    """No gradients; a second call uses the handle of the first with a fixed number of rows."""
    from hybridep.deepep.hybrid_ep_buffer import indices_to_map

    buffer, layer = new_buffer(), Layer(rank, num_ranks)
    routing_map, probs = indices_to_map(layer.ids, layer.weights, len(layer.x), layer.num_experts)
    assert torch.equal(routing_map, layer.routing_map) and torch.equal(probs, layer.probs)
    rows, row_probs, _, sizes, handle = buffer.dispatch_with_permute(
        hidden=layer.x, routing_map=routing_map, probs=probs, pad_multiple=1
    )
    sizes = sizes.tolist()
    out, none = buffer.combine_with_unpermute(hidden=experts(rows, row_probs, sizes), handle=handle)
    assert none is None and torch.equal(out, layer.expected()[0])
    bound = sum(sizes) + 8
    rows, row_probs, _, none, handle = buffer.dispatch_with_permute(
        hidden=layer.x,
        probs=probs,
        handle=handle,
        num_permuted_tokens=bound,
        pad_multiple=1,
        non_blocking=True,
    )
    out, _ = buffer.combine_with_unpermute(hidden=experts(rows, row_probs, sizes), handle=handle)
    assert none is None and torch.equal(out, layer.expected()[0])


# ---------------------------------------------------------------------------- attributes and probes


def attributes(rank, num_ranks):
    group = torch.distributed.group.WORLD
    buffer = deep_ep.HybridEPBuffer(group, 64, 100 + rank, 2, num_sms_dispatch_api=16)
    assert buffer.group is group
    assert (buffer.rank, buffer.group_size) == (rank, num_ranks)
    assert (buffer.local_rank, buffer.node_rank, buffer.num_of_nodes) == (rank, 0, 1)
    assert buffer.num_of_hybrid_ep_ranks_per_nvlink_domain == num_ranks
    assert (buffer.num_sms_dispatch_api, buffer.num_sms_combine_api) == (16, 24)
    for config in (buffer.configurer.buffer_config, buffer.config):
        assert config.is_valid()
        assert config.hidden_dim == 64
        assert config.max_num_of_tokens_per_rank == 512
        assert config.num_of_experts_per_rank == 2
        assert config.num_of_ranks_per_node == num_ranks
        assert config.num_of_nodes == 1
        assert "UINT16" in str(config.token_data_type)
        assert config.num_of_blocks_dispatch_api == 16
        assert config.num_of_tokens_per_chunk_dispatch_api == 64
        assert config.num_of_dispatch_chunks == config.num_of_combine_chunks == 8
    buffer.empty_jit_cache()
    budgets = {"num_sms_dispatch_api": 8, "num_sms_combine_api": 12}
    buffer = deep_ep.HybridEPBuffer(group, 64, 1, 2, **budgets, num_sms_preprocessing_api=4)
    config = buffer.config
    assert (config.num_of_blocks_dispatch_api, config.num_of_blocks_combine_api) == (8, 12)
    assert config.num_of_blocks_preprocessing_api == 4


def templates(rank, num_ranks):
    """A config of FP8 becomes one of BF16 for the backward pass."""
    buffer = new_buffer(use_fp8=True)
    config = buffer.update_template_config(
        hidden_dim=HIDDEN, num_of_tokens_per_rank=17, pad_multiple=128, num_of_stages_dispatch_api=4
    )
    assert config.is_valid(fuse_permute_dispatch=True)
    assert (config.hidden_dim, config.max_num_of_tokens_per_rank) == (HIDDEN, 32)
    assert (config.num_of_experts_per_rank, config.pad_multiple) == (NUM_LOCAL_EXPERTS, 128)
    assert config.num_of_stages_dispatch_api == 4
    assert "UINT8" in str(config.token_data_type)
    config = buffer.update_template_config(use_fp8=False)
    assert "UINT16" in str(config.token_data_type)
    layer = Layer(rank, num_ranks)
    rows = torch.zeros(len(layer.x), 128, dtype=torch.uint8)
    wide = deep_ep.HybridEPBuffer(torch.distributed.group.WORLD, 128, 64, 2, use_fp8=True)
    result = wide.dispatch_with_permute(
        hidden=rows, scaling_factor=torch.ones(len(rows), 1), routing_map=layer.routing_map
    )
    handle = list(result[-1])
    assert "UINT8" in str(handle[9].token_data_type)
    handle[9] = config
    back, _, none, _, _ = wide.dispatch_with_permute(
        hidden=rows.bfloat16(), handle=tuple(handle), num_permuted_tokens=len(result[0])
    )
    assert back.dtype == torch.bfloat16 and none is None


SIGNATURES = {
    "__init__": "group hidden_dim max_num_of_tokens_per_rank num_local_experts use_fp8 "
    "num_sms_dispatch_api num_sms_combine_api num_sms_preprocessing_api num_blocks_permute "
    "num_blocks_unpermute load_cached_kernels use_shared_buffer enable_custom_allgather "
    "num_of_hybrid_ep_ranks_per_nvlink_domain use_mnnvl max_top_k",
    "dispatch_with_permute": "hidden topk_idx topk_weights num_of_experts_per_rank num_of_experts "
    "use_fp8 routing_map probs scaling_factor num_permuted_tokens pad_multiple "
    "num_of_tokens_per_rank handle non_blocking fuse_permute_dispatch num_dispatched_tokens "
    "use_host_meta",
    "combine_with_unpermute": "hidden probs handle pad_multiple fuse_unpermute_combine "
    "num_dispatched_tokens",
    "dispatch": "hidden scaling_factor topk_idx topk_weights num_of_experts probs routing_map "
    "num_dispatched_tokens_tensor num_dispatched_tokens handle num_of_tokens_per_rank",
    "combine": "hidden probs handle",
    "update_template_config": "hidden_dim num_of_tokens_per_rank num_local_experts pad_multiple "
    "use_fp8 fuse_permute_dispatch kwargs",
}


class Layers(unittest.TestCase):
    """The backward pass runs on a thread of its own."""

    def test_map_and_probs(self):
        run_all(map_layer, {"pad_multiple": None, "num_permuted_tokens": None})
        run_all(map_layer, {"pad_multiple": 256, "num_permuted_tokens": None})

    def test_map_and_probs_without_waiting(self):
        run_all(map_layer, {"pad_multiple": 16, "num_permuted_tokens": 512, "non_blocking": True})

    def test_ids_and_dense_probs_with_recomputation(self):
        run_all(recomputed_layer)

    def test_weights_of_ids(self):
        run_all(weight_layer, {})
        run_all(weight_layer, {"num_permuted_tokens": 512, "non_blocking": True})

    def test_inference(self):
        run_all(inference)


class Probes(unittest.TestCase):
    def test_attributes(self):
        run_all(attributes)

    def test_configs_of_calls(self):
        run_all(templates)

    def test_names_of_arguments(self):
        for method, names in SIGNATURES.items():
            parameters = inspect.signature(getattr(deep_ep.HybridEPBuffer, method)).parameters
            self.assertEqual(list(parameters), ["self", *names.split()])

    def test_keywords_alone(self):
        for method in ("dispatch_with_permute", "combine_with_unpermute"):
            parameters = inspect.signature(getattr(deep_ep.HybridEPBuffer, method)).parameters
            kinds = {parameter.kind for parameter in list(parameters.values())[1:]}
            self.assertEqual(kinds, {inspect.Parameter.KEYWORD_ONLY})

    def test_ids_become_a_map(self):
        ids = torch.tensor([[0, 2, 0], [-1, 5, 1]])
        weights = torch.tensor([[0.5, 1.0, 0.25], [8.0, 8.0, 2.0]])
        routing_map, probs = deep_ep.hybrid_ep_buffer.indices_to_map(ids, weights, 2, 4)
        self.assertEqual(
            routing_map.tolist(), [[True, False, True, False], [False, True, False, False]]
        )
        self.assertEqual(probs.tolist(), [[0.75, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
        self.assertEqual((routing_map.dtype, probs.dtype), (torch.bool, torch.float32))
        self.assertTrue(routing_map.is_contiguous() and probs.is_contiguous())
        routing_map, probs = deep_ep.hybrid_ep_buffer.indices_to_map(ids.int(), None, 2, 4)
        self.assertEqual(routing_map.sum().item(), 3)
        self.assertIsNone(probs)


# ------------------------------------------------------------------------------------------ imports

USE = """
    import deep_ep, hybrid_ep_cpp, importlib
    from deep_ep import HybridEPBuffer, HybridEpConfigInstance
    from deep_ep.hybrid_ep_buffer import indices_to_map
    import hybridep.deepep as own
    assert HybridEPBuffer is own.HybridEPBuffer and deep_ep.HybridEPBuffer is HybridEPBuffer
    assert HybridEpConfigInstance is own.HybridEpConfigInstance
    assert indices_to_map is own.hybrid_ep_buffer.indices_to_map
    assert deep_ep.hybrid_ep_buffer.HybridEPBuffer is HybridEPBuffer
    assert importlib.import_module("deep_ep.hybrid_ep_buffer") is own.hybrid_ep_buffer
    assert "UINT8" in str(hybrid_ep_cpp.UINT8) and "UINT16" in str(hybrid_ep_cpp.UINT16)
    assert hybrid_ep_cpp.HybridEpConfigInstance is HybridEpConfigInstance
    assert not hybrid_ep_cpp.BufferConfig().is_valid()
    assert hybrid_ep_cpp.Configurer().buffer_config.hidden_dim == 0
    class Group:
        def size(self):
            return 3
    assert hybrid_ep_cpp.ExtendedMemoryAllocator().detect_accessible_ranks(Group()) == 3
"""
ALONE = """
    try:
        from deep_ep import Buffer
    except ImportError:
        pass
    else:
        raise AssertionError("there is a Buffer")
    assert deep_ep.__version__ == hybridep.__version__
"""
BESIDE = """
    from deep_ep import Buffer
    assert Buffer == "theirs" and deep_ep.utils.name == "utils" and deep_ep.__version__ == "9.9"
"""
OTHER = {
    "deep_ep/__init__.py": """
        import hybrid_ep_cpp
        from . import utils
        from .hybrid_ep_buffer import HybridEPBuffer
        Buffer = "theirs"
        __version__ = "9.9"
        assert hybrid_ep_cpp.theirs
    """,
    "deep_ep/utils.py": 'name = "utils"',
    "deep_ep/hybrid_ep_buffer.py": 'HybridEPBuffer = "theirs"',
    "hybrid_ep_cpp.py": "theirs = True",
}
INSTALL = "import hybridep.deepep; hybridep.deepep.install(); hybridep.deepep.install()"


class Imports(unittest.TestCase):
    """Each in a process of its own, forked where PyTorch is loaded already."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        for name, text in OTHER.items():
            path = pathlib.Path(folder.name, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))

    def python(self, code, *path):
        """Runs code with these folders in front on the path."""
        child = os.fork()
        if child == 0:
            sys.path[:0] = path
            self.end_after(textwrap.dedent(code))
        _, status = os.waitpid(child, 0)
        self.assertEqual(status, 0, "the code has failed: see standard error")

    def end_after(self, code):
        status = 1
        try:
            exec(code, {"hybridep": hybridep})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def shims(self):
        return str(pathlib.Path(deep_ep.__file__).parent / "path")

    def test_by_alias(self):
        alone = ALONE.replace("from deep_ep", "from hybridep.deepep")
        self.python("import hybridep.deepep as deep_ep" + textwrap.dedent(alone))

    def test_by_alias_beside_another(self):
        """The other one stays what it is."""
        self.python(
            """
            import hybridep.deepep as deep_ep
            import sys
            assert "deep_ep" not in sys.modules
            from deep_ep import Buffer, HybridEPBuffer
            assert HybridEPBuffer == "theirs" != deep_ep.HybridEPBuffer
            """,
            self.folder,
        )

    def test_by_install(self):
        self.python(INSTALL + textwrap.dedent(USE + ALONE))

    def test_by_install_beside_another(self):
        self.python(INSTALL + textwrap.dedent(USE + BESIDE), self.folder)

    def test_by_install_after_another_was_imported(self):
        self.python("import deep_ep\n" + INSTALL + textwrap.dedent(USE + BESIDE), self.folder)

    def test_by_path(self):
        """A new process whose PYTHONPATH has the folder that the command prints."""
        command = [sys.executable, "-m", "hybridep.deepep", "--path"]
        shims = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        self.assertEqual(shims, self.shims())
        path = os.pathsep.join([shims, os.environ["PYTHONPATH"]])
        code = "import hybridep\n" + textwrap.dedent(USE + ALONE)
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True
        )

    def test_by_path_in_this_process(self):
        self.python(textwrap.dedent(USE + ALONE), self.shims())

    def test_by_path_beside_another(self):
        self.python(textwrap.dedent(USE + BESIDE), self.shims(), self.folder)

    def test_by_path_with_the_compiled_module_first(self):
        self.python("import hybrid_ep_cpp" + textwrap.dedent(USE + ALONE), self.shims())

    def test_namespaces_of_operators_stay_free(self):
        self.python("""
            import pkgutil, importlib, torch
            for module in pkgutil.walk_packages(hybridep.__path__, "hybridep."):
                if not module.name.endswith("__main__") and ".path" not in module.name:
                    importlib.import_module(module.name)
            library = torch.library.Library("hybridep", "DEF")
            library.define("dispatch(Tensor x) -> Tensor")
            library.impl("dispatch", lambda x: x + 1, "CPU")
            assert torch.ops.hybridep.dispatch(torch.zeros(1)).item() == 1
            """)
