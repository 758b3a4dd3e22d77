"""The options of ``[air_executor]``: what there is (``options``), where it is set (``sources``), and its ``values``."""

from air_executor.config.options import OPTIONS as OPTIONS
from air_executor.config.options import SECTION as SECTION
from air_executor.config.options import Group as Group
from air_executor.config.options import Option as Option
from air_executor.config.options import default as default
from air_executor.config.options import env_var as env_var
from air_executor.config.options import parse_option as parse_option
from air_executor.config.sources import Getter as Getter
from air_executor.config.sources import airflow_home as airflow_home
from air_executor.config.sources import plain_getter as plain_getter
from air_executor.config.sources import unknown_options as unknown_options
from air_executor.config.values import Config as Config
from air_executor.config.values import load as load
from air_executor.config.values import load_plain as load_plain
from air_executor.config.values import plain_state_dir as plain_state_dir
