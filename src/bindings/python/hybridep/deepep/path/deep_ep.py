# SPDX-License-Identifier: Apache-2.0
"""`import deep_ep` finds this module. It puts the modules of hybridep.deepep in its place."""

import hybridep.deepep

hybridep.deepep.install()
