"""The tests. What their helpers assert is explained like what tests assert."""

import pytest

pytest.register_assert_rewrite("tests.support")
