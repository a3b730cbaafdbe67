"""torchrun with an exit code that a scheduler understands: `python -m infnet_rec.launcher.torchrun`, same arguments.

torchrun itself ends with a traceback and code 1 when it or its ranks were asked to stop, so a preempted run looks like
a broken one. Ranks that it starts again find the addresses of those that died in the store that the launchers share,
and call them in vain. What else it lacks: `agent.py`, and where the nodes meet: `rendezvous.py`.

No torch at the top: signals are heard from the first line, and torch takes seconds to import.
"""

import logging
import os
import sys
from collections.abc import Sequence

from infnet_rec.errors import TRY_AGAIN, UserError
from infnet_rec.launcher.failures import SPOKEN_FOR
from infnet_rec.launcher.rank_environment import LAUNCHER_PID, end_early_on_signals

# What they have to say of ranks that end is said by the agent.
TALKATIVE = (
    "multiprocessing.api",
    "multiprocessing.errors.error_handler",
    "agent.server.api",
    "rendezvous.dynamic_rendezvous",
)


def torchrun(arguments: Sequence[str]) -> int:
    """Runs it; the exit code is `TRY_AGAIN` where a signal ended the run and it can be continued."""
    # Read when torch is loaded. It prints the stack of C++ where a launcher ends a moment before another.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError
    from torch.distributed.launcher import api
    from torch.distributed.run import parse_args, parse_min_max_nnodes, run

    from infnet_rec.launcher.agent import FINAL, Agent, NodeEnded
    from infnet_rec.launcher.rendezvous import look_at_meeting

    api.LocalElasticAgent = Agent
    # A store of their own for every start of the ranks.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ[SPOKEN_FOR] = "1"
    if "LOGLEVEL" not in os.environ:
        for name in TALKATIVE:
            logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    args = parse_args(list(arguments))
    try:
        least, most = parse_min_max_nnodes(args.nnodes)
        Agent.is_elastic = least < most
        look_at_meeting(args)
        record(run)(args)
    except UserError as fault:
        print(f"infnet-rec: fault: {fault}", file=sys.stderr)
        return 2
    except NodeEnded as ended:
        print(f"infnet-rec: ended: {ended}", file=sys.stderr)
        return ended.code
    except RendezvousConnectionError:
        print(f"infnet-rec: failed: {args.rdzv_endpoint}: nothing answers where the nodes meet", file=sys.stderr)
        return 1
    except SignalException:
        return TRY_AGAIN
    except ChildFailedError as error:
        # The first to end is who decided it; the agent may have ended the others with a signal.
        code = Agent.first.exit_code if Agent.first else error.get_first_failure()[1].exitcode
        return code if code in (TRY_AGAIN, *FINAL) else 1
    return 0


if __name__ == "__main__":
    end_early_on_signals()
    # A process that starts none of its own would be taken for the launcher of whatever it starts.
    os.environ[LAUNCHER_PID] = str(os.getpid())
    sys.exit(torchrun(sys.argv[1:]))
