"""Lists of images and masks, by the names that bundles' configurations use; :mod:`amsam_med.data.sets` makes them.

==============  ============================================================================  ======================
set             folders                                                                       parts
==============  ============================================================================  ======================
plain           ``images`` and ``masks``: the same stem, or ``<stem>_segmentation``            none
ISIC 2018       the archives' own names, or ``train``, ``val``, ``test``, each a plain folder  train, val, test
Human (Vikram)  ``Training_Images`` and ``Ground_Truth``, or a plain folder                    train, test (last 100)
TikTok          ``segmentation_full_body_tik_tok_2615_img``, or a plain folder                 train, test (last 2000)
==============  ============================================================================  ======================
"""

from amsam_med.choices import Part as Part
from amsam_med.data.sets.human_vikram import human_vikram_datalist as human_vikram_datalist
from amsam_med.data.sets.isic2018 import isic2018_datalist as isic2018_datalist
from amsam_med.data.sets.pairs import Folder as Folder
from amsam_med.data.sets.pairs import Item as Item
from amsam_med.data.sets.pairs import few_shot_draw as few_shot_draw
from amsam_med.data.sets.pairs import folder_datalist as folder_datalist
from amsam_med.data.sets.pairs import image_stem as image_stem
from amsam_med.data.sets.pairs import list_images as list_images
from amsam_med.data.sets.pairs import refuse_output_among as refuse_output_among
from amsam_med.data.sets.registry import datalist_parts as datalist_parts
from amsam_med.data.sets.registry import open_datalist as open_datalist
from amsam_med.data.sets.tiktok import tiktok_datalist as tiktok_datalist
