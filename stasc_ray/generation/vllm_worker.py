"""What runs inside vLLM's own worker processes (`worker_extension_cls`)."""

import multiprocessing
import os
import select
import signal
import threading
from typing import Any

from stasc_ray.generation.spec import OWNER


class WorkerExtension:
    """Methods that vLLM adds to its worker; `LLMEngine.collective_rpc` calls them by name."""

    model_runner: Any

    def repack_heads(self) -> None:
        """Pack the weights of embeddings and output heads again, after an exchange of weights.

        On CPU a tied head keeps its own packed copy of the embeddings. vLLM 0.29 loads no tensor under the
        head's name, so it places the head again without packing it, and the copy stays old.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            for module in self.model_runner.get_model().modules():
                if isinstance(module, VocabParallelEmbedding):
                    module.quant_method.process_weights_after_loading(module)


def end_with_owner() -> None:
    """End this process, one of vLLM's own, when the one that made the engine has gone.

    vLLM 0.29's engine process does not watch its parent. Ray ends a dead worker's children while its raylet
    lives; this is for a raylet that is lost too, and for whoever runs an engine without Ray.
    """
    owner, parent = int(os.environ.get(OWNER, "0")), os.getppid()
    if not owner or multiprocessing.parent_process() is None:  # the engine lives in its owner's process
        return

    def watch() -> None:
        try:
            handle = os.pidfd_open(owner)
        except ProcessLookupError:
            pass
        else:
            select.select([handle], [], [])  # readable once it has ended
        if parent != owner:  # one of several workers: the engine process between them watches nobody
            os.kill(parent, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="owner-watch", daemon=True).start()


# At import, which is when vLLM makes its worker: before it takes any of the GPU's memory.
end_with_owner()
