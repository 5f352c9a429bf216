"""What an experiment needs around the tools: data, models, training, records, claims, figures."""

from sharpnb.lab import models as models
from sharpnb.lab.claims import Claim as Claim
from sharpnb.lab.claims import mean_stderr as mean_stderr
from sharpnb.lab.claims import t95 as t95
from sharpnb.lab.data import Data as Data
from sharpnb.lab.data import DataError as DataError
from sharpnb.lab.data import load_data as load_data
from sharpnb.lab.data import with_label_noise as with_label_noise
from sharpnb.lab.grid import log2_grid as log2_grid
from sharpnb.lab.notebook import Notebook as Notebook
from sharpnb.lab.notebook import start as start
from sharpnb.lab.records import Record as Record
from sharpnb.lab.records import RecordMismatch as RecordMismatch
from sharpnb.lab.sweep import sweep as sweep
from sharpnb.lab.training import History as History
from sharpnb.lab.training import evaluate as evaluate
from sharpnb.lab.training import train as train
from sharpnb.many.train import Many as Many
from sharpnb.many.train import train_many as train_many
