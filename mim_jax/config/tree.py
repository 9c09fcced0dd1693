"""The whole configuration tree with its defaults (MAE, ViT-B/16, ImageNet), the choices and the ranges of its keys."""

from ml_collections import ConfigDict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def default_config() -> ConfigDict:
    """Every key there is; scalars and flat tuples only. Sections named after methods are added by the config files.

    The values are MAE's for ViT-B/16 on ImageNet (facebookresearch/mae, main_pretrain.py; He et al. 2022, table 8).
    """
    config = ConfigDict()
    config.base = 'mae'  # base method: what builds the recipe
    config.papers = ()  # papers stacked on the base; each changes the recipe. Command line: --config.papers=mff,mto
    config.seed = 0  # of parameters, masks, augmentation and data order
    config.image_size = 224  # pixels, square
    config.batch_size = 4096  # images per optimizer step, over all devices and micro-batches
    config.accumulate = 1  # micro-batches per optimizer step; memory falls, batch, masks and lr stay
    config.epochs = 800.0  # passes over the training split
    config.steps = 0  # optimizer steps; 0: from epochs
    config.dtype = 'bfloat16'  # of activations; parameters, optimizer, softmax and losses are float32

    config.encoder = encoder = ConfigDict()
    encoder.patch_size = 16  # pixels
    encoder.width = 768  # channels
    encoder.depth = 12  # blocks
    encoder.heads = 12  # of attention
    encoder.positions = 'fixed'  # the method's own, or learned: a table that starts so and is trained
    encoder.drop_path = 0.0  # probability at the last block, rising linearly from 0; 0: off
    encoder.scan = False  # one compiled block looped: compiles faster, may need more memory
    encoder.remat = 'none'  # recompute activations in the backward pass: none, full, dots (keep matrix products)

    config.optim = optim = ConfigDict()
    optim.name = 'adamw'  # or lars, whose momentum is b1
    optim.base_lr = 1.5e-4  # before lr_scaling
    optim.lr_scaling = 'linear/256'  # peak lr: none, linear/256, linear/512 (x batch/N), sqrt (x sqrt(batch)/4)
    optim.b1 = 0.9  # AdamW, decay of the first moment
    optim.b2 = 0.95  # AdamW, decay of the second moment
    optim.eps = 1e-8  # AdamW, added to the root of the second moment
    optim.weight_decay = 0.05  # 0: off
    # Spared from decay: mae (1-D, so biases and norms), simmim (also positions, CLS), mmpretrain (biases, norms,
    # positions, CLS, mask token).
    optim.decay_exclude = 'mae'
    # After the warm-up: cosine to min_lr, cosine_beit (BEiT's table: the warm-up ends one step
    # earlier), cosine_timm (as if begun at step 0), step, constant.
    optim.schedule = 'cosine'
    optim.warmup_epochs = 40.0  # linear; 0: off
    optim.warmup_lr = 0.0  # where the warm-up starts, before lr_scaling
    optim.min_lr = 0.0  # end of the cosine, absolute
    optim.same_ends = False  # layers that learn more slowly: True lowers their peak alone, False the whole curve
    optim.step_epochs = ()  # step: where the lr is multiplied by step_factor
    optim.step_factor = 0.1  # step: by which
    optim.clip_norm = 0.0  # global gradient norm; 0: off

    config.data = data = ConfigDict()
    data.source = 'tfds'  # tfds (ArrayRecord), folder, npz, digits (embedded), synthetic
    data.name = 'imagenet2012'  # TFDS name; other sources ignore it
    data.dir = ''  # TFDS data_dir ('': TFDS's own default), root of the folder source, or path of the npz file
    data.split = 'train'  # trained on; slices such as train[:90%] work
    data.share = 1.0  # of the images of every class of split, at random; 0.01 and 0.1 are low-shot
    data.share_seed = 0  # which ones
    data.list = ''  # a file that lists the images of split to use, such as SimCLR's 1percent.txt; '': all
    data.eval_split = 'validation'  # read by probes and pictures
    data.crop = 'rrc'  # rrc (random resized), rrc_once (clipped, never redrawn), src (resize, pad, crop), center
    data.interpolation = 'bicubic'  # bicubic, bilinear
    data.scale = (0.2, 1.0)  # rrc, rrc_once: area kept, fraction of the image
    data.ratio = (3 / 4, 4 / 3)  # rrc, rrc_once: width / height
    data.padding = 4  # src: pixels on every side, reflected
    data.flip = True  # horizontal, probability 1/2
    data.rand_augment = ''  # timm's string, such as rand-m9-mstd0.5-inc1; '': off
    data.mean = IMAGENET_MEAN  # per channel, of pixels in 0..1
    data.std = IMAGENET_STD  # likewise
    data.threads = 16  # readers and decoders per host process
    data.workers = 0  # worker processes per host; 0: threads only
    data.cache = 'auto'  # decoded images kept in memory: auto (if small), always, never
    data.on_bad_image = 'stop'  # stop, or skip: replace it and count

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # devices along the data axis; -1: all that fsdp and model leave
    mesh.fsdp = 1  # devices that share one copy of parameters and optimizer; 1: replicated
    mesh.model = 1  # devices that share the heads and hidden units of every block, on the same images; 1: off
    mesh.slices = 0  # groups of devices with a fast network, which must divide data; 0: as the devices say

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 0  # 0: off
    checkpoint.every_minutes = 15.0  # 0: off
    checkpoint.keep = 3  # newest ones
    checkpoint.milestone_epochs = 100.0  # kept for good every so many epochs; 0: none

    config.log = log = ConfigDict()
    log.every_steps = 50  # between events of metrics.jsonl
    log.tensorboard = True  # event files beside metrics.jsonl
    log.wandb = ''  # Weights & Biases project; '': off

    config.probe = probe = ConfigDict()
    probe.every_epochs = 0.0  # 0: off
    probe.knn = True  # nearest neighbours of frozen features
    probe.ridge = True  # ridge regression on frozen features
    probe.few_shot = 0  # labelled images per class; 0: off
    probe.train_images = 5000  # at most
    probe.test_images = 2000  # at most
    probe.pool = 'mean'  # of patch tokens, or cls

    config.pictures = pictures = ConfigDict()
    pictures.every_epochs = 0.0  # 0: off
    pictures.count = 8  # images per picture
    return config


CHOICES = {
    'dtype': ('bfloat16', 'float32'),
    'encoder.positions': ('fixed', 'learned'),
    'encoder.remat': ('none', 'full', 'dots'),
    'optim.name': ('adamw', 'lars'),
    'optim.lr_scaling': ('none', 'linear/256', 'linear/512', 'sqrt'),
    'optim.decay_exclude': ('mae', 'simmim', 'mmpretrain'),
    'optim.schedule': ('cosine', 'cosine_beit', 'cosine_timm', 'step', 'constant'),
    'data.source': ('tfds', 'folder', 'npz', 'digits', 'synthetic'),
    'data.crop': ('rrc', 'rrc_once', 'src', 'center'),
    'data.interpolation': ('bicubic', 'bilinear'),
    'data.cache': ('auto', 'always', 'never'),
    'data.on_bad_image': ('stop', 'skip'),
    'probe.pool': ('mean', 'cls'),
}

COUNTS = (  # at least 1; every other number is at least 0, save mesh.data
    'image_size',
    'batch_size',
    'accumulate',
    'encoder.patch_size',
    'encoder.width',
    'encoder.depth',
    'encoder.heads',
    'mesh.fsdp',
    'mesh.model',
    'checkpoint.keep',
    'log.every_steps',
    'probe.train_images',
    'probe.test_images',
    'pictures.count',
)
POSITIVE = ('optim.base_lr', 'optim.eps')  # above 0
BELOW_ONE = ('encoder.drop_path', 'optim.b1', 'optim.b2')  # 0 <= value < 1
TUPLE_LENGTHS = {'data.scale': 2, 'data.ratio': 2, 'data.mean': 3, 'data.std': 3}
