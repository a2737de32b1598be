"""Published configs and tokenizers of other projects, which are not committed: `$TINYLM_CASES`, or ../shared/cases.

The tests that read them are skipped where the folder is absent.
"""

import os
from pathlib import Path

CASES = Path(os.environ.get("TINYLM_CASES", Path(__file__).resolve().parents[2] / "shared" / "cases"))
CONFIGS, TOKENIZERS = CASES / "models" / "configs", CASES / "models" / "tokenizers"
