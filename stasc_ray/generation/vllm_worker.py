"""What runs inside vLLM's own worker processes (`worker_extension_cls`)."""

from typing import Any


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
