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
        return {
            "required": {
                "image": ("IMAGE",),
                "model": (sorted(list_models()), {"default": "denoise-small"}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}),
                "tile": ("INT", {"default": 0, "min": 0, "max": 4096, "step": 64, "tooltip": "0 chooses itself"}),
            }
        }

    def run(self, image, model, strength, tile):
        try:
            import comfy.model_management

            device = str(comfy.model_management.get_torch_device())
        except ImportError:
            device = "cpu"
        planes = image.movedim(-1, -3)
        restored = restore(_network(model, device), planes, strength=strength, tile=tile or "auto")
        return (restored.movedim(-3, -1).contiguous(),)


@lru_cache(maxsize=2)
def _network(name, device):
    return load_model(name, device=device)


NODE_CLASS_MAPPINGS = {"RestoreWithKithkin": RestoreWithKithkin}
NODE_DISPLAY_NAME_MAPPINGS = {"RestoreWithKithkin": "Restore (kithkin)"}
