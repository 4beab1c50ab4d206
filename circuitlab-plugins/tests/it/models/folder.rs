//! Opening models from folders, recorded ones and made ones.

use std::path::{Path, PathBuf};

use circuitlab_core::config::FloatKind;
use circuitlab_core::{Error, LanguageModel, ModelSource, Registry, Spec, files, tensors};
use serde_json::Value;
use tch::Tensor;

/// A folder of the repository.
pub(super) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A recorded model's folder.
pub(super) fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures/models").join(name)
}

pub(super) fn open(family: &str, path: &Path, dtype: FloatKind) -> Result<Box<dyn LanguageModel>, Error> {
    open_source(family, ModelSource { dtype, ..ModelSource::new(path) })
}

pub(super) fn open_source(family: &str, source: ModelSource) -> Result<Box<dyn LanguageModel>, Error> {
    circuitlab_plugins::link();
    let Ok(Value::Object(settings)) = serde_json::to_value(source) else { panic!("a source is a table") };
    let registry = Registry::linked().expect("no name twice");
    registry.build::<dyn LanguageModel>(&Spec { name: family.to_owned(), settings })
}

/// The message of the error that such a folder gives.
pub(super) fn refusal(family: &str, path: &Path) -> String {
    open(family, path, FloatKind::F32).expect_err("a bad folder").to_string()
}

/// A model's folder in a temporary place, to be spoilt or filled.
pub(super) struct Folder {
    place: tempfile::TempDir,
}

impl Folder {
    pub(super) fn empty() -> Self {
        Self { place: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A copy of a recorded model.
    pub(super) fn copy_of(name: &str) -> Self {
        let folder = Self::empty();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture(name).join(file), folder.join(file)).expect("copies");
        }
        folder
    }

    pub(super) fn path(&self) -> &Path {
        self.place.path()
    }

    pub(super) fn join(&self, file: &str) -> PathBuf {
        self.path().join(file)
    }

    pub(super) fn write(&self, file: &str, text: &[u8]) {
        files::write_atomic(&self.join(file), |out| out.write_all(text)).expect("writes");
    }

    /// Changes keys of `config.json`.
    pub(super) fn configure(&self, changes: &Value) {
        let text = std::fs::read(self.join("config.json")).expect("reads");
        let mut config: Value = serde_json::from_slice(&text).expect("JSON");
        for (key, value) in changes.as_object().expect("a table") {
            config[key] = value.clone();
        }
        self.write("config.json", config.to_string().as_bytes());
    }

    pub(super) fn tensors(&self) -> Vec<(String, Tensor)> {
        let file = tensors::TensorFile::open(&self.join("model.safetensors")).expect("opens");
        let names = file.names().expect("names");
        names.into_iter().map(|name| (name.clone(), file.tensor(&name, None, tch::Device::Cpu).expect("is there"))).collect()
    }

    pub(super) fn write_tensors(&self, file: &str, named: &[(String, Tensor)]) {
        tensors::write(&self.join(file), named).expect("writes");
    }

    /// Changes the list of tensors.
    pub(super) fn edit(&self, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
        let mut named = self.tensors();
        change(&mut named);
        self.write_tensors("model.safetensors", &named);
    }
}
