"""The conformance kit: what every plugin's techniques and parts must do, as checks that say what to change.

`flowers-bench plugin check NAME` runs them. In a plugin's own tests they are one test each:

```python
from flowers_bench.testing import conformance_tests

test_conformance = conformance_tests("my-technique")
```

Importing this module imports neither torch nor pytest.
"""

from flowers_bench.testing.collect import Check, checks, conformance_tests
from flowers_bench.testing.subject import Nonconformance

__all__ = ["Check", "Nonconformance", "checks", "conformance_tests"]
