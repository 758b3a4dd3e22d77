"""Supervising task processes in a runner: Airflow's supervisor with AirExecutor's additions.

Importing this package puts them in the places where Airflow's code looks for them. A launcher imports it before its
first fork.
"""

from air_executor.airflow import quick_end
from air_executor.airflow.compat import execution, logs
from air_executor.airflow.compat import supervisor as airflows
from air_executor.airflow.supervision.ahead import dismiss as dismiss
from air_executor.airflow.supervision.ahead import fork_ahead as fork_ahead
from air_executor.airflow.supervision.current import begin as begin
from air_executor.airflow.supervision.current import forget as forget
from air_executor.airflow.supervision.supervisor import AirSupervisor as AirSupervisor

airflows.use_supervisor(AirSupervisor)
airflows.use_output_reader()
execution.let_faults_kill()
execution.quieten_imports()
logs.outlive_full_disks()
quick_end.install()
