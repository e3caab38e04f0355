filterViewer($("explorer"), DATA.images);
document.documentElement.dataset.ready = "true";
