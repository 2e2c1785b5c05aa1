# SPDX-License-Identifier: Apache-2.0
"""`HybridEPBuffer`, with the arguments, results and handles that users of Hybrid-EP know.

R ranks, E experts of all ranks, EL = E / R, T tokens of this rank, K ids of a token, H hidden, n
rows. Expert e lives on rank e / EL. Tensors lie on the rank's GPU, or all on the CPU with the host
backend.
"""

from __future__ import annotations

import warnings
from typing import Any, Optional, Tuple

import torch

from .._errors import integer
from .._values import Counts
from . import _choice, _config, _dense, _flat, _permuted, _routes, _tokens
from ._choice import Choice
from ._config import BufferConfig, Configurer, HybridEpConfigInstance
from ._handles import Batch, Handle
from ._room import DEFAULT_TOP_K, Room, Sizes
from ._tokens import Tokens

__all__ = ["HybridEPBuffer", "HybridEpConfigInstance", "indices_to_map"]


def indices_to_map(
    topk_idx: Any, topk_weights: Optional[Any], num_of_tokens: int, num_of_experts: int
) -> Tuple[Any, Optional[Any]]:
    """bool [T, E] of the experts that ids int [T, K] select, and FP32 [T, E] of their weights FP32
    [T, K], or None without weights. Ids outside [0, E) select nothing. Weights of equal ids add up.
    """
    ids = topk_idx.view(num_of_tokens, -1).long()
    ones = torch.ones_like(ids, dtype=torch.float32)
    routing_map = _dense.by_expert(ones, ids, num_of_experts) > 0
    if topk_weights is None:
        return routing_map, None
    weights = topk_weights.view(num_of_tokens, -1).float()
    return routing_map, _dense.by_expert(weights, ids, num_of_experts)


class HybridEPBuffer:
    """Dispatch and combine among the ranks of a process group.

    The rows of a dispatch follow each other by (local expert, source rank, token); those of
    `dispatch` by (source rank, token). Calls come on all ranks in the same order.
    """

    def __init__(
        self,
        group: Any,
        hidden_dim: int,
        max_num_of_tokens_per_rank: int,
        num_local_experts: int,
        use_fp8: bool = False,
        num_sms_dispatch_api: Optional[int] = None,
        num_sms_combine_api: Optional[int] = None,
        num_sms_preprocessing_api: Optional[int] = None,
        num_blocks_permute: Optional[int] = None,
        num_blocks_unpermute: Optional[int] = None,
        load_cached_kernels: bool = False,
        use_shared_buffer: bool = True,
        enable_custom_allgather: bool = False,
        num_of_hybrid_ep_ranks_per_nvlink_domain: Optional[int] = None,
        use_mnnvl: Optional[bool] = None,
        max_top_k: Optional[int] = None,
    ) -> None:
        """Collective.

        group                       of torch.distributed, of NCCL or Gloo
        hidden_dim                  H; a row of BF16 is a multiple of 16 bytes
        max_num_of_tokens_per_rank  the largest of the ranks' values counts, at least 512
        num_local_experts           EL
        use_fp8                     of a dispatch that does not say otherwise
        num_sms_dispatch_api, num_sms_combine_api, num_sms_preprocessing_api
                                    the most SMs of a dispatch, a combine and the routing: 24, 24
                                    and 108
        max_top_k                   the most experts that a token selects, 1 to 32. None: the first
                                    routing map tells, for which the host waits once; 8 for ids,
                                    until there are more

        The other arguments have no effect.
        """
        self.group = group
        self.use_fp8 = use_fp8
        self._sms = _config.SmBudgets(
            num_sms_dispatch_api, num_sms_combine_api, num_sms_preprocessing_api
        )
        self.num_sms_dispatch_api = self._sms.dispatch
        self.num_sms_combine_api = self._sms.combine
        self.num_sms_preprocessing_api = self._sms.preprocessing
        sizes = Sizes(
            integer("hidden_dim", hidden_dim),
            integer("max_num_of_tokens_per_rank", max_num_of_tokens_per_rank),
            integer("num_local_experts", num_local_experts),
            DEFAULT_TOP_K if max_top_k is None else integer("max_top_k", max_top_k),
        )
        self._room = Room(group, sizes, max_top_k, self._sms)
        self.rank = self._room.rank
        self.group_size = self._room.num_ranks
        self.num_of_hybrid_ep_ranks_per_nvlink_domain = self._room.domain_size
        self.num_of_nodes = self.group_size // self._room.domain_size
        self.node_rank, self.local_rank = divmod(self.rank, self._room.domain_size)

    # -------------------------------------------------------------------------------- configs

    @property
    def config(self) -> BufferConfig:
        """What the buffer has room for now."""
        sizes = self._room.sizes
        return BufferConfig(
            hidden_dim=sizes.hidden,
            max_num_of_tokens_per_rank=sizes.num_tokens,
            num_of_experts_per_rank=sizes.num_local_experts,
            num_of_ranks_per_node=self.num_of_hybrid_ep_ranks_per_nvlink_domain,
            num_of_nodes=self.num_of_nodes,
            token_data_type=_config.token_data_type(self.use_fp8),
            num_of_blocks_preprocessing_api=self._sms.preprocessing,
            num_of_blocks_dispatch_api=self._sms.dispatch,
            num_of_blocks_combine_api=self._sms.combine,
        )

    @property
    def configurer(self) -> Configurer:
        return Configurer(self.config)

    def empty_jit_cache(self) -> None:
        """Nothing is compiled at run time, so nothing is deleted."""

    def update_template_config(
        self,
        hidden_dim: Optional[int] = None,
        num_of_tokens_per_rank: Optional[int] = None,
        num_local_experts: Optional[int] = None,
        pad_multiple: Optional[int] = None,
        use_fp8: Optional[bool] = None,
        fuse_permute_dispatch: bool = False,
        **kwargs: Any,
    ) -> HybridEpConfigInstance:
        """The config of a call. Makes the buffer larger if it exceeds what there is room for, which
        is collective; older handles stay valid. kwargs are further attributes of the config.
        """
        sizes = self._room.sizes
        wanted = sizes._replace(
            hidden=hidden_dim or sizes.hidden,
            num_tokens=num_of_tokens_per_rank or sizes.num_tokens,
            num_local_experts=num_local_experts or sizes.num_local_experts,
        )
        self._room.make(wanted)
        config = self._template(
            wanted.hidden,
            wanted.num_tokens,
            wanted.num_local_experts,
            pad_multiple or 1,
            self.use_fp8 if use_fp8 is None else use_fp8,
        )
        for name, value in kwargs.items():
            setattr(config, name, value)
        return config

    def _template(
        self, hidden: int, num_tokens: int, num_local_experts: int, pad_multiple: int, use_fp8: bool
    ) -> HybridEpConfigInstance:
        return HybridEpConfigInstance(
            hidden_dim=hidden,
            max_num_of_tokens_per_rank=_config.template_tokens(num_tokens),
            num_of_experts_per_rank=num_local_experts,
            num_of_ranks_per_node=self.num_of_hybrid_ep_ranks_per_nvlink_domain,
            num_of_nodes=self.num_of_nodes,
            pad_multiple=pad_multiple,
            token_data_type=_config.token_data_type(use_fp8),
            num_of_blocks_preprocessing_api=self._sms.preprocessing,
            num_of_blocks_dispatch_api=self._sms.dispatch,
            num_of_blocks_combine_api=self._sms.combine,
        )

    # ------------------------------------------------------------------- rows by local expert

    def dispatch_with_permute(
        self,
        *,
        hidden: Any,
        topk_idx: Optional[Any] = None,
        topk_weights: Optional[Any] = None,
        num_of_experts_per_rank: Optional[int] = None,
        num_of_experts: Optional[int] = None,
        use_fp8: Optional[bool] = None,
        routing_map: Optional[Any] = None,
        probs: Optional[Any] = None,
        scaling_factor: Optional[Any] = None,
        num_permuted_tokens: Any = None,
        pad_multiple: Optional[int] = None,
        num_of_tokens_per_rank: Optional[int] = None,
        handle: Optional[Handle] = None,
        non_blocking: bool = False,
        fuse_permute_dispatch: bool = False,
        num_dispatched_tokens: Optional[Any] = None,
        use_host_meta: Optional[bool] = None,
    ) -> Tuple[Any, Any, Any, Any, Handle]:
        """Brings each token to its experts: a row for each expert that it selects. Collective.

        hidden                   [T, H] BF16 or FP16, or FP8 or uint8 with scaling_factor
        routing_map              bool [T, E]; decides over topk_idx
        topk_idx                 int32 or int64 [T, K] ids, -1 for none; needs num_of_experts
        probs                    FP32 [T, E] that go with the rows; decides over topk_weights
        topk_weights             FP32 [T, K] of topk_idx
        num_of_experts_per_rank  EL of this call; None: by num_of_experts, otherwise the buffer's
        use_fp8                  None: the constructor's; with a handle the type of hidden decides
        scaling_factor           FP32 [T, H / 128], needed with FP8, ignored otherwise
        num_permuted_tokens      n; needed with handle or non_blocking. Rows past it are dropped
        pad_multiple             1 to 4096: zeros fill each expert's rows up to a multiple
        num_of_tokens_per_rank   the most tokens of any rank, the same on all ranks
        handle                   of an earlier call: its routing is used, and no other is read
        non_blocking             the host does not wait for the counts
        fuse_permute_dispatch    has no effect

        Returns rows [n, H], their probs FP32 [n] or None, their scales FP32 [n, H / 128] or None,
        the padded numbers of each local expert's rows int64 [EL] (blocking: on the CPU; with a
        handle: None), and the handle. Blocking, n is the sum of these numbers unless it is told.
        """
        if use_host_meta is not None:
            _warn_deprecated("use_host_meta", "non_blocking")
            non_blocking = not use_host_meta
        if num_dispatched_tokens is not None:
            _warn_deprecated("num_dispatched_tokens", "nothing")
        self._room.check()
        if handle is not None:
            tokens = _tokens.read_tokens(hidden, scaling_factor, use_fp8)
            _tokens.most_tokens(tokens, num_of_tokens_per_rank)
            return _permuted.redispatch(
                self, handle, tokens, probs, topk_weights, num_permuted_tokens, pad_multiple
            )
        tokens, choice, experts = self._read(
            hidden,
            scaling_factor,
            self.use_fp8 if use_fp8 is None else use_fp8,
            num_of_experts_per_rank,
            num_of_experts,
            routing_map,
            topk_idx,
            topk_weights,
            probs,
        )
        shape = _permuted.read_shape(num_permuted_tokens, pad_multiple, non_blocking)
        return _permuted.dispatch(self, tokens, choice, shape, experts, num_of_tokens_per_rank)

    def combine_with_unpermute(
        self,
        *,
        hidden: Any,
        probs: Optional[Any] = None,
        handle: Optional[Handle] = None,
        pad_multiple: Optional[int] = None,
        fuse_unpermute_combine: bool = False,
        num_dispatched_tokens: Optional[Any] = None,
    ) -> Tuple[Any, Optional[Any]]:
        """Adds up the rows of each token, without weights. Collective; the host never waits.

        hidden  BF16 or FP16 [n, H] in the order of the dispatch
        probs   FP32 [n], brought back to [token, expert]

        Returns [T, H], zeros for a token without rows, and FP32 [T, E] or None without probs: 0
        where nothing was selected or the row was dropped. The other arguments have no effect.
        """
        if num_dispatched_tokens is not None:
            _warn_deprecated("num_dispatched_tokens", "nothing")
        self._room.check()
        return _permuted.combine(self, handle, hidden, probs)

    # ------------------------------------------------------------------- rows by source rank

    def dispatch(
        self,
        hidden: Any,
        scaling_factor: Optional[Any] = None,
        topk_idx: Optional[Any] = None,
        topk_weights: Optional[Any] = None,
        num_of_experts: Optional[int] = None,
        probs: Optional[Any] = None,
        routing_map: Optional[Any] = None,
        num_dispatched_tokens_tensor: Optional[Any] = None,
        num_dispatched_tokens: Optional[Any] = None,
        handle: Optional[Handle] = None,
        num_of_tokens_per_rank: Optional[int] = None,
    ) -> Tuple[Any, Any, Any, Handle]:
        """Brings each token to the ranks of its experts: a row for each rank. Collective.

        num_dispatched_tokens  n, of a new routing. None: the host waits for it

        The other arguments are those of `dispatch_with_permute`. Returns rows [n, H], their probs
        FP32 [n, E] or None (0 in the columns of other ranks' experts), their scales
        FP32 [n, H / 128] or None, and the handle.
        """
        self._room.check()
        rows = _flat.read_rows(num_dispatched_tokens, num_dispatched_tokens_tensor)
        if handle is not None:
            tokens = _tokens.read_tokens(hidden, scaling_factor, None)
            _tokens.most_tokens(tokens, num_of_tokens_per_rank)
            return _flat.redispatch(self, handle, tokens, probs, topk_weights, rows)
        tokens, choice, experts = self._read(
            hidden,
            scaling_factor,
            self.use_fp8,
            None,
            num_of_experts,
            routing_map,
            topk_idx,
            topk_weights,
            probs,
        )
        return _flat.dispatch(self, tokens, choice, rows, experts, num_of_tokens_per_rank)

    def combine(
        self, hidden: Any, probs: Optional[Any] = None, handle: Optional[Handle] = None
    ) -> Tuple[Any, Optional[Any]]:
        """Adds up the rows of each token. The caller has added up the results of a row's experts.
        Collective; the host never waits.

        hidden  BF16 or FP16 [n, H] in the order of the dispatch
        probs   FP32 [n, E], of which the columns of this rank's experts are brought back

        Returns [T, H], and FP32 [T, E] or None without probs.
        """
        self._room.check()
        return _flat.combine(self, handle, hidden, probs)

    # -------------------------------------------------------------------------------- private

    def _read(
        self,
        hidden: Any,
        scaling_factor: Optional[Any],
        use_fp8: bool,
        num_of_experts_per_rank: Optional[int],
        num_of_experts: Optional[int],
        routing_map: Optional[Any],
        topk_idx: Optional[Any],
        topk_weights: Optional[Any],
        probs: Optional[Any],
    ) -> Tuple[Tokens, Choice, int]:
        """Tokens, choice and EL of a call with a new routing."""
        tokens = _tokens.read_tokens(hidden, scaling_factor, use_fp8)
        experts = _choice.local_experts(
            num_of_experts_per_rank,
            num_of_experts,
            self.group_size,
            self._room.sizes.num_local_experts,
        )
        choice = _choice.read_choice(
            tokens.num_tokens,
            experts * self.group_size,
            routing_map,
            topk_idx,
            topk_weights,
            num_of_experts,
            probs,
        )
        return tokens, choice, experts

    def _route(
        self,
        choice: Choice,
        tokens: Tokens,
        pad_multiple: int,
        num_local_experts: int,
        num_of_tokens_per_rank: Optional[int],
        blocks: bool,
    ) -> Tuple[Batch, Optional[Counts]]:
        """The batch of a new routing, and its counts if the host waits for them."""
        most = _tokens.most_tokens(tokens, num_of_tokens_per_rank)
        top_k = 1 if choice.is_map else choice.indices.shape[1]
        wanted = Sizes(tokens.hidden, most, num_local_experts, top_k)
        route, counts = _routes.route(
            self._room, choice, wanted, pad_multiple, num_of_tokens_per_rank or 0, blocks
        )
        return Batch(self, route.routing, route.memory, pad_multiple, num_local_experts), counts

    def _call_config(
        self, tokens: Tokens, pad_multiple: int, num_local_experts: int
    ) -> HybridEpConfigInstance:
        return self._template(
            tokens.hidden, tokens.num_tokens, num_local_experts, pad_multiple, tokens.use_fp8
        )


def _warn_deprecated(name: str, instead: str) -> None:
    warnings.warn(f"{name} is deprecated: give {instead} instead", DeprecationWarning, stacklevel=3)
