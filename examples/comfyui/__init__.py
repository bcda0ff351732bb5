"""A node for ComfyUI: copy this folder to ComfyUI/custom_nodes/kithkin and install kithkin beside ComfyUI."""

from functools import lru_cache

from kithkin import list_models, load_model, restore


class RestoreWithKithkin:
    """Removes noise, rain or some blur from pictures: (B, H, W, 3) floats in [0, 1], or with alpha (B, H, W, 4)."""

    CATEGORY = "image/restoration"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        share = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}
        luma = "how much of the grain to remove; 0.5 with chroma 1 leaves half of the grain and no colour speckle"
        return {
            "required": {
                "image": ("IMAGE",),
                "model": (sorted(list_models()), {"default": "denoise-small"}),
                "strength": ("FLOAT", {**share, "tooltip": "scales both amounts below"}),
                "tile": ("INT", {"default": 0, "min": 0, "max": 4096, "step": 64, "tooltip": "0 chooses itself"}),
                # Behind the others: saved workflows hold the values in this order.
                "luma": ("FLOAT", {**share, "tooltip": luma}),
                "chroma": ("FLOAT", {**share, "tooltip": "how much of the colour speckle to remove"}),
            }
        }

    def run(self, image, model, strength, tile, luma=1.0, chroma=1.0):
        try:
            import comfy.model_management

            device = str(comfy.model_management.get_torch_device())
        except ImportError:
            device = "cpu"
        planes = image.movedim(-1, -3)
        amounts = {"strength": strength, "luma": luma, "chroma": chroma}
        restored = restore(_network(model, device), planes, **amounts, tile=tile or "auto")
        return (restored.movedim(-3, -1).contiguous(),)


@lru_cache(maxsize=2)
def _network(name, device):
    return load_model(name, device=device)


NODE_CLASS_MAPPINGS = {"RestoreWithKithkin": RestoreWithKithkin}
NODE_DISPLAY_NAME_MAPPINGS = {"RestoreWithKithkin": "Restore (kithkin)"}
