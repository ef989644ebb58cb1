import subprocess
import sys


def test_the_agent_loop_and_the_rewards_load_no_framework() -> None:
    code = (
        "import sys, cacherl.rollout.loop, cacherl.rollout.tools, cacherl.rollout.lookups, "
        "cacherl.rollout.credit, cacherl.reward.answer, cacherl.reward.tier_aware, "
        "cacherl.evaluate.evaluate, cacherl.train.collector, cacherl.train.scoring\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'toolcache') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
