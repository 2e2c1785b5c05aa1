# SPDX-License-Identifier: Apache-2.0
"""The configs that a buffer shows. Callers read and set their attributes."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import Optional

DOMAIN_VARIABLE = "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"
LEAST_TOKENS = 512
_TOKENS_OF_A_CHUNK = 64
_TOKENS_OF_A_BATCH_STEP = 16
_DEFAULT_SMS = 24
_DEFAULT_PREPROCESSING_SMS = 108


class TokenDataType(enum.Enum):
    """Bytes of an element of a row: UINT8 stands for FP8, UINT16 for BF16 and FP16."""

    UINT16 = 0
    UINT8 = 1


def token_data_type(use_fp8: bool) -> TokenDataType:
    return TokenDataType.UINT8 if use_fp8 else TokenDataType.UINT16


def rounded_tokens(num_tokens: int) -> int:
    """The tokens that a buffer makes room for: at least 512, in whole chunks."""
    chunks = -(-max(num_tokens, LEAST_TOKENS) // _TOKENS_OF_A_CHUNK)
    return chunks * _TOKENS_OF_A_CHUNK


def template_tokens(num_tokens: int) -> int:
    """The tokens that the config of a call names."""
    return -(-num_tokens // _TOKENS_OF_A_BATCH_STEP) * _TOKENS_OF_A_BATCH_STEP


def domain_size_told() -> Optional[int]:
    """The ranks of an NVLink domain, if the environment tells them."""
    told = os.environ.get(DOMAIN_VARIABLE)
    return int(told) if told else None


class SmBudgets:
    """The SMs that each operation may occupy."""

    def __init__(
        self, dispatch: Optional[int], combine: Optional[int], preprocessing: Optional[int]
    ) -> None:
        self.dispatch = _DEFAULT_SMS if dispatch is None else dispatch
        self.combine = _DEFAULT_SMS if combine is None else combine
        self.preprocessing = _DEFAULT_PREPROCESSING_SMS if preprocessing is None else preprocessing

    @property
    def largest(self) -> int:
        return max(self.dispatch, self.combine)

    def blocks(self, budget: int) -> int:
        """The library's setting for an operation. 0: its budget is no less than the largest."""
        return 0 if budget >= self.largest else budget


@dataclass(eq=False)
class BufferConfig:
    """What a buffer has room for."""

    hidden_dim: int = 0
    max_num_of_tokens_per_rank: int = 0
    num_of_experts_per_rank: int = 0
    num_of_ranks_per_node: int = 0
    num_of_nodes: int = 1
    token_data_type: TokenDataType = TokenDataType.UINT16
    num_of_blocks_preprocessing_api: int = _DEFAULT_PREPROCESSING_SMS
    num_of_blocks_dispatch_api: int = _DEFAULT_SMS
    num_of_blocks_combine_api: int = _DEFAULT_SMS
    num_of_tokens_per_chunk_dispatch_api: int = _TOKENS_OF_A_CHUNK
    num_of_tokens_per_chunk_combine_api: int = _TOKENS_OF_A_CHUNK

    @property
    def num_of_dispatch_chunks(self) -> int:
        return -(-self.max_num_of_tokens_per_rank // self.num_of_tokens_per_chunk_dispatch_api)

    @property
    def num_of_combine_chunks(self) -> int:
        return -(-self.max_num_of_tokens_per_rank // self.num_of_tokens_per_chunk_combine_api)

    def is_valid(self) -> bool:
        sizes = (self.hidden_dim, self.max_num_of_tokens_per_rank, self.num_of_experts_per_rank)
        return min(sizes) > 0 and self.num_of_ranks_per_node > 0


@dataclass(eq=False)
class HybridEpConfigInstance:
    """The config of a call. `hidden_dim`, `pad_multiple`, `num_of_experts_per_rank` and
    `token_data_type` tell what the call does; the other attributes have no effect.
    """

    hidden_dim: int = 0
    max_num_of_tokens_per_rank: int = 0
    num_of_experts_per_rank: int = 0
    num_of_ranks_per_node: int = 0
    num_of_nodes: int = 1
    pad_multiple: int = 1
    topk: int = 0
    token_data_type: TokenDataType = TokenDataType.UINT16
    num_of_tokens_per_chunk_preprocessing_api: int = _TOKENS_OF_A_CHUNK
    num_of_tokens_per_chunk_dispatch_api: int = _TOKENS_OF_A_CHUNK
    num_of_tokens_per_chunk_combine_api: int = _TOKENS_OF_A_CHUNK
    num_of_threads_per_block_preprocessing_api: int = 256
    num_of_blocks_preprocessing_api: int = _DEFAULT_PREPROCESSING_SMS
    num_of_blocks_dispatch_api: int = _DEFAULT_SMS
    num_of_blocks_combine_api: int = _DEFAULT_SMS
    num_of_blocks_permute: int = _DEFAULT_PREPROCESSING_SMS
    num_of_blocks_unpermute: int = _DEFAULT_PREPROCESSING_SMS
    num_of_stages_dispatch_api: int = 10
    num_of_stages_permute_block_dispatch_api: int = 10
    num_of_in_flight_s2g_dispatch_api: int = 8
    num_of_in_flight_s2g_permute_block_dispatch_api: int = 8
    num_of_additional_in_flight_s2g_dispatch_api: int = 6
    forward_dispatch_api: bool = True
    device_side_sync_dispatch_api: bool = True
    num_of_stages_g2s_combine_api: int = 10
    num_of_stages_s2g_combine_api: int = 2
    num_of_tokens_per_group_combine_api: int = 4
    num_of_additional_in_flight_s2g_combine_api: int = 2
    backward_combine_api: bool = True
    device_side_sync_combine_api: bool = True

    def is_valid(self, fuse_permute_dispatch: bool = False) -> bool:
        """Fused or not is one and the same here."""
        sizes = (self.hidden_dim, self.max_num_of_tokens_per_rank, self.num_of_experts_per_rank)
        return min(sizes) > 0 and self.pad_multiple >= 0


class Configurer:
    """Holds the config of a buffer."""

    def __init__(self, buffer_config: Optional[BufferConfig] = None) -> None:
        self.buffer_config = BufferConfig() if buffer_config is None else buffer_config
