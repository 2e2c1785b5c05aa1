# SPDX-License-Identifier: Apache-2.0
"""`import hybrid_ep_cpp` finds this module. It puts the modules of hybridep.deepep in its place."""

import hybridep.deepep

hybridep.deepep.install()
