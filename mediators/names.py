# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of files that come from a cage, for the halves of mediators: cage_runtime.filenames, which cagectl has too."""

from __future__ import annotations

from cage_runtime.filenames import CHUNK as CHUNK
from cage_runtime.filenames import EXTENSION_BYTES as EXTENSION_BYTES
from cage_runtime.filenames import FILE_NAME_BYTES as FILE_NAME_BYTES
from cage_runtime.filenames import HIDDEN as HIDDEN
from cage_runtime.filenames import RENAMES_MAX as RENAMES_MAX
from cage_runtime.filenames import TRANSFER_BYTES_MAX as TRANSFER_BYTES_MAX
from cage_runtime.filenames import candidate as candidate
from cage_runtime.filenames import check_file_name as check_file_name
