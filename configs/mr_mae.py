"""MR-MAE: Mimic before Reconstruct (Gao et al., 2023), on MCMAE's CViT-B, CLIP ViT-B/16 as teacher, ImageNet-1k, 400 epochs.

Command   python -m mim_jax.train --config configs/mr_mae.py --workdir runs/mr_mae --config.data.dir=DATA
          --config.mr_mae.clip_weights=weights/clip-vit-base-patch16  (without it, the run says where to get the file)
          rows of table 3, on MAE's ViT-B, 200 epochs: :reconstruct :mimic :focused :fused :decoder :mimic_only
          its last row: :convolution  table 4: :fused,dino :fused,clip :fused,joint  table 5: --config.epochs=200, 800
          also :cvit_{s,b,l,h}16 (:fused,vit_s16)  :cifar10  :folder  :smoke and :demo (CPU, a small random teacher)
          on other bases: --config configs/pixmim.py --config.papers=mr_mae
Cost      about 102 GFLOP an image, 35 of them the teacher's: 133 TPU v4 chip-hours at 40 % of peak (arithmetic).
Expected  fine-tuning, table 1: 85.8 (400 epochs), 85.5 (200). Table 3: L_R 83.0, + L_M 84.7, + focus 84.9, + fusion 85.0,
          both from the decoder 83.3, L_M alone 84.9, + masked convolution 85.5. Table 4: DINO 84.0, CLIP 85.0, joint 83.8; the
          ensemble of the first two 85.5. Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config

ON_VIT = ('reconstruct', 'mimic', 'focused', 'fused', 'decoder', 'mimic_only')  # all rows of table 3 but the last
VARIANTS = {  # a row sets what is the default too, where it is what the row stands for: so rows exclude one another
    'reconstruct': {'papers': (), 'mr_mae.focus': 'random', 'mr_mae.teachers': ()},  # MAE itself
    'mimic': {'mr_mae.focus': 'random', 'mr_mae.fusion': False},
    'focused': {'mr_mae.focus': 'topk', 'mr_mae.fusion': False},
    'fused': {'mr_mae.focus': 'topk', 'mr_mae.fusion': True},
    'decoder': {'mr_mae.focus': 'topk', 'mr_mae.mimic_on': 'decoder'},
    'mimic_only': {'mr_mae.focus': 'topk', 'mr_mae.reconstruct_weight': 0.0},
    'convolution': {'mr_mae.focus': 'topk'},
    'clip': {'mr_mae.teachers': ('clip',)},
    'dino': {'mr_mae.teachers': ('dino',)},
    'joint': {'mr_mae.teachers': ('clip', 'dino')},
}


def get_config(variant: str = '') -> ConfigDict:
    chosen = {part.strip() for part in variant.split(',')}
    config = default_config()
    config.base, config.papers = 'mcmae', ('mr_mae',)
    config.batch_size = 1024
    config.epochs = 200.0 if chosen & {*ON_VIT, 'convolution'} else 400.0
    config.optim.warmup_epochs = 80.0
    decoder = {
        'mask_ratio': 0.75,  # the paper's 25 % are what is visible
        'norm_pix_loss': True,  # targets normalised within each patch
        'decoder_width': 512,
        'decoder_depth': 8,
        'decoder_heads': 16,
    }
    if chosen.isdisjoint(ON_VIT):
        config.encoder.depth = 11  # transformer blocks after the convolution stages
        config.mcmae = ConfigDict(decoder | {'stage_widths': (256, 384), 'stage_depths': (2, 2)})
    else:
        config.base, config.mae = 'mae', ConfigDict(decoder)
    config.mr_mae = ConfigDict(
        {
            'teachers': ('clip',),  # of clip, dino, dinov2, random; the first decides the focus
            'clip_weights': '',  # model.safetensors, or the folder it is in
            'dino_weights': '',
            'dinov2_weights': '',
            'feature': 'ln_post',  # of the teacher's last block: pre_ln (raw), ln_post (normed), proj (CLIP's joint space)
            'target_norm': 'none',  # none, layer_norm, l2
            'focus': 'topk',  # what stays visible: topk and sample by the teacher's attention, random as the base's masks
            'fusion': True,  # blocks are added up before mimicry and reconstruction
            'layers': (),  # blocks added to the last, from 0; (): 2, 5 and 8 of 11 or 12
            'mimic_on': 'encoder',  # or decoder: the features of masked tokens
            'reconstruct_weight': 0.5,  # 0: no decoder
            'mimic_weight': 0.5,
        }
    )
    return apply_variants(config, variant, VARIANTS)
