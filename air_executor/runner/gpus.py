"""GPUs as exclusive leases: a lock file each, held by the runner whose task has the GPU."""

from __future__ import annotations

import os
import time

from air_executor.errors import LimitsError
from air_executor.machine.gpu_pool import cuda_name, lock_name
from air_executor.runs.lock import KernelLock
from air_executor.runs.store import RunStore

#: How often a runner that waits for GPUs polls, in seconds. It can't block: a process waits on one lock, not on any of
#: several.
_RETRY_S = 0.5


def lease(store: RunStore, pool: tuple[str, ...], count: int) -> list[KernelLock]:
    """Lease ``count`` GPUs of ``pool``, waiting for them as long as it takes, and show them to CUDA.

    The executor orders a task once enough are free (``airflow/gpu_queue.py``), so a task waits here only when another
    user of the pool, such as a job, was faster.

    :return: the locks that hold the leases; they end with this process, or when they are released.
    :raises LimitsError: the pool has fewer GPUs.
    """
    if count > len(pool):
        raise LimitsError(
            f"executor_config['air']['gpus'] = {count} can not be applied: [air_executor] gpus offers {len(pool)}."
        )
    while True:
        taken: dict[str, KernelLock] = {}
        for gpu in pool:
            lock = KernelLock(store.gpus / lock_name(gpu))
            if len(taken) < count and lock.acquire(timeout_s=0):
                taken[gpu] = lock
        if len(taken) == count:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(cuda_name, taken))
            # By default CUDA numbers the fastest GPU 0, which need not be the first one of the machine.
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            return list(taken.values())
        # All or none: two runners that each keep half of what they need would wait for ever.
        for lock in taken.values():
            lock.release()
        time.sleep(_RETRY_S)
