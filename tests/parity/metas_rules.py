"""Llama 3.2 Vision of `transformers` with the two rules of the code that Meta released, where the library departs."""


def under_metas_rules(theirs):
    """The reference with the two rules of Meta's code: features enter the local layers, and blind tokens are left alone."""
    stack = theirs.model.vision_model.transformer
    plain = stack.forward

    def forward(hidden_states, attention_mask):
        found = plain(hidden_states, attention_mask=attention_mask)
        found.hidden_states = (hidden_states, *found.hidden_states[:-1])
        return found

    stack.forward = forward
    for layer in theirs.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            layer.register_forward_pre_hook(_remember_the_sighted, with_kwargs=True)
            layer.cross_attn.register_forward_hook(lambda m, _, out, layer=layer: (out[0] * layer.sighted, out[1]))
    return theirs


def _remember_the_sighted(layer, args, kwargs):
    mask = kwargs["full_text_row_masked_out_mask"]
    layer.sighted = 1.0 if mask is None else mask[:, 0]
