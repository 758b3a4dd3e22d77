"""All that knows one Airflow version from another, and what of Airflow is not its public interface.

The scheduler's side needs workloads, options and the scheduler, and finds them here by name. What only launchers,
runners and task processes need is imported from its module, so that no scheduler loads it: ``api``, ``execution``,
``logs``, ``rehearsing``, ``supervisor``, ``tokens``.

``tests/unit/test_compat.py`` fails when an internal of Airflow that is used here has changed. ``docs/wishes.md`` says
why each is used, and which public interface would replace it.
"""

from air_executor.airflow.compat.options import execution_api_url as execution_api_url
from air_executor.airflow.compat.options import team_getter as team_getter
from air_executor.airflow.compat.scheduler import leave_shared_connections as leave_shared_connections
from air_executor.airflow.compat.scheduler import use_admission as use_admission
from air_executor.airflow.compat.scheduler import use_idle_wait as use_idle_wait
from air_executor.airflow.compat.scheduler import use_vouching as use_vouching
from air_executor.airflow.compat.version import AIRFLOW_VERSION as AIRFLOW_VERSION
from air_executor.airflow.compat.workloads import callback_key as callback_key
from air_executor.airflow.compat.workloads import dump_workload as dump_workload
from air_executor.airflow.compat.workloads import executor_config as executor_config
from air_executor.airflow.compat.workloads import identity_of as identity_of
from air_executor.airflow.compat.workloads import identity_of_instance as identity_of_instance
from air_executor.airflow.compat.workloads import key_of as key_of
from air_executor.airflow.compat.workloads import kind_of as kind_of
from air_executor.airflow.compat.workloads import log_file_of as log_file_of
from air_executor.airflow.compat.workloads import parse_workload as parse_workload
from air_executor.airflow.compat.workloads import pre_assigned_id as pre_assigned_id
from air_executor.airflow.compat.workloads import priority_of as priority_of
from air_executor.airflow.compat.workloads import states_of as states_of
from air_executor.airflow.compat.workloads import trace_carrier as trace_carrier
from air_executor.airflow.compat.workloads import with_lasting_token as with_lasting_token
from air_executor.airflow.compat.workloads import with_new_token as with_new_token
from air_executor.airflow.compat.workloads import workload_of as workload_of
