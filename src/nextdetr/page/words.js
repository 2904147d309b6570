// All texts of the page, in English and Chinese.

const WORDS = {
  en: {
    other: '中文', skip: 'Skip to the picture', model: 'Model', key: 'Key', keys: 'Keyboard', close: 'Close', picture: 'Picture',
    dropTitle: 'Drop pictures here', dropText: 'a picture, a folder or a video, or use the camera',
    pictures: 'Choose pictures', folder: 'Choose a folder', video: 'Choose a video', camera: 'Use the camera',
    private: 'Pictures go to this server only. It keeps none, except corrections that you save.',
    tools: 'Tools', add: 'Add a box', remove: 'Delete', undo: 'Undo', smaller: 'Zoom out', larger: 'Zoom in',
    canvas: 'The picture with the boxes; arrow keys move the selected box',
    hint: 'Click a box to select it, drag it to move it, drag its corners to resize it. Press ? for the keyboard.',
    play: 'Play or pause', seek: 'Position', grab: 'Keep this frame', stop: 'Close', images: 'Pictures', more: 'Add pictures',
    settings: 'Results', threshold: 'Confidence at least', auto: 'by class', autoText: 'The model’s own for each class', calibratedText: (recall) => `Calibrated: misses at most ${+(100 - 100 * recall).toFixed(1)} % on average`, unlike: 'This picture is unlike those of the training, so the result is in doubt.', classes: 'Classes', objects: 'Objects', nothing: 'Nothing found at this confidence.',
    corrections: 'Corrections', save: 'Save this picture’s boxes',
    saveText: 'Saves the picture with all boxes above the confidence, including hidden classes, for training.',
    saved: (n) => `Saved. ${n} corrected ${n === 1 ? 'picture' : 'pictures'} on the server.`,
    download: 'Download', thePicture: 'Picture', keyTitle: 'This server needs a key', keyText: 'Ask the server’s operator for it. It is kept until this tab is closed.',
    cancel: 'Cancel', ok: 'OK', name: 'Class', looking: 'Looking …', waiting: (s) => `The server is busy, next try in ${s} s`,
    added: 'yours', noServer: 'The server does not answer.', noCamera: 'The camera cannot be used: allow it for this page, and open the page over https or on this computer.',
    noVideo: 'This browser cannot play the video.', noPicture: (n) => `${n} is neither a picture nor a video.`, noView: 'This browser cannot show the picture; the boxes are still correct.',
    noFolder: (n) => `The folder ${n} cannot be read when dropped: use “Choose a folder”.`,
    time: ({ model, all }) => `Model ${milliseconds(model)}, with reading and resizing ${milliseconds(all)}`,
    here: 'Pictures stay in this browser: nothing is sent anywhere.',
    loading: (share) => (share < 1 ? `Loading the detector: ${Math.floor(100 * share)} %` : 'Starting the detector …'),
    runtime: (m) => `${m.runtime}, ${m.image_size} px${m.threads ? `, ${m.threads} ${m.threads === 1 ? 'thread' : 'threads'}` : ''}.${m.why ? ` ${word(m.why)}` : ''}`,
    noHeaders: 'Several threads need the headers COOP and COEP: “python serve.py” in the folder sends them.',
    oneFile: 'A single file runs on one thread.',
    noFile: (name, reason) => `${name} cannot be loaded (${reason}): serve the whole folder as exported.`,
    unreachable: 'it cannot be reached', otherBytes: (n, all) => `it has ${n} bytes, not ${all}`,
    noRuntime: (reason) => `onnxruntime-web fails in this browser (${reason}).`, stopped: (reason) => `The detector has stopped (${reason}): reload the page.`,
    noRead: (n) => `${n} cannot be read: it is damaged, or in a format that this browser does not support.`,
    tooLarge: (w, h) => `The picture is too large for this browser: ${w} × ${h} pixels.`, noNumber: 'The model’s output is not a number (NaN): export it again.',
    perSecond: (n) => `${n.toFixed(1)} frames/s`, unsaved: 'There are unsaved corrections.',
    list: [['A', 'add a box; Enter places it'], ['Tab', 'next object'], ['Arrows', 'move the box, with Shift by 10 pixels'], ['Alt + arrows', 'resize the box'],
      ['R', 'rename'], ['Delete', 'delete'], ['Ctrl + Z', 'undo'], ['S', 'save'], ['[ and ]', 'previous, next picture'], ['+ and −', 'zoom'], ['Esc', 'deselect']],
  },
  zh: {
    other: 'English', skip: '跳到图片', model: '模型', key: '密钥', keys: '键盘操作', close: '关闭', picture: '图片',
    dropTitle: '把图片拖到这里', dropText: '图片、文件夹或视频，也可以使用摄像头',
    pictures: '选择图片', folder: '选择文件夹', video: '选择视频', camera: '使用摄像头',
    private: '图片只发送到本服务器。除了您保存的修正，服务器不保留任何图片。',
    tools: '工具', add: '添加框', remove: '删除', undo: '撤销', smaller: '缩小', larger: '放大',
    canvas: '带有检测框的图片；方向键移动所选的框',
    hint: '点击选择框，拖动可移动，拖动角可调整大小。按 ? 查看键盘操作。',
    play: '播放或暂停', seek: '位置', grab: '保留这一帧', stop: '关闭', images: '图片', more: '添加图片',
    settings: '结果', threshold: '最低置信度', auto: '按类别', autoText: '使用模型自带的各类别阈值', calibratedText: (recall) => `已校准：平均漏检不超过 ${+(100 - 100 * recall).toFixed(1)} %`, unlike: '这张图片与训练图片差别较大，结果可能不可靠。', classes: '类别', objects: '目标', nothing: '在此置信度下没有检测到目标。',
    corrections: '修正', save: '保存这张图片的框',
    saveText: '保存图片和高于置信度的所有框（包括隐藏的类别），用于训练。',
    saved: (n) => `已保存。服务器上共有 ${n} 张修正过的图片。`,
    download: '下载', thePicture: '图片', keyTitle: '此服务器需要密钥', keyText: '请向服务器管理者索取。关闭此标签页后即被清除。',
    cancel: '取消', ok: '确定', name: '类别', looking: '检测中…', waiting: (s) => `服务器繁忙，${s} 秒后重试`,
    added: '人工', noServer: '服务器没有响应。', noCamera: '无法使用摄像头：请允许此页面使用，并通过 https 或在本机打开页面。',
    noVideo: '此浏览器无法播放该视频。', noPicture: (n) => `${n} 不是图片，也不是视频。`, noView: '此浏览器无法显示该图片，但检测框是正确的。',
    noFolder: (n) => `无法读取拖入的文件夹 ${n}：请使用“选择文件夹”。`,
    time: ({ model, all }) => `模型 ${milliseconds(model)}，含读取和缩放共 ${milliseconds(all)}`,
    here: '图片只在此浏览器中处理，不会发送到任何地方。',
    loading: (share) => (share < 1 ? `正在加载检测器：${Math.floor(100 * share)} %` : '正在启动检测器…'),
    runtime: (m) => `${m.runtime}，${m.image_size} 像素${m.threads ? `，${m.threads} 个线程` : ''}。${m.why ? word(m.why) : ''}`,
    noHeaders: '多线程需要 COOP 和 COEP 响应头：在文件夹中运行 python serve.py 即可。',
    oneFile: '单文件只用一个线程运行。',
    noFile: (name, reason) => `无法加载 ${name}（${reason}）：请提供导出的整个文件夹。`,
    unreachable: '无法访问', otherBytes: (n, all) => `大小为 ${n} 字节，应为 ${all} 字节`,
    noRuntime: (reason) => `onnxruntime-web 在此浏览器中出错（${reason}）。`, stopped: (reason) => `检测器已停止（${reason}）：请重新加载页面。`,
    noRead: (n) => `无法读取 ${n}：文件已损坏，或此浏览器不支持该格式。`,
    tooLarge: (w, h) => `图片对此浏览器过大：${w} × ${h} 像素。`, noNumber: '模型的计算结果不是数字（NaN）：请重新导出。',
    perSecond: (n) => `${n.toFixed(1)} 帧/秒`, unsaved: '有未保存的修正。',
    list: [['A', '添加框，回车确认'], ['Tab', '下一个目标'], ['方向键', '移动框，按住 Shift 移动 10 像素'], ['Alt + 方向键', '调整大小'],
      ['R', '改类别'], ['Delete', '删除'], ['Ctrl + Z', '撤销'], ['S', '保存'], ['[ 和 ]', '上一张、下一张'], ['+ 和 −', '缩放'], ['Esc', '取消选择']],
  },
};

let language = 'en';

const milliseconds = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;

export function word(name, ...values) {
  const found = WORDS[language][name];
  return typeof found === 'function' ? found(...values) : found;
}

export function chooseLanguage(wanted) {
  let stored = null;
  try { stored = localStorage.getItem('nextdetr-language'); } catch { /* storage is off */ }
  const browser = (navigator.languages || [navigator.language]).find((name) => /^(en|zh)/i.test(name)) || 'en';
  language = wanted || (stored in WORDS ? stored : browser.slice(0, 2).toLowerCase());
  if (wanted) { try { localStorage.setItem('nextdetr-language', wanted); } catch { /* likewise */ } }
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
  for (const element of document.querySelectorAll('[data-word]')) element.textContent = word(element.dataset.word);
  for (const element of document.querySelectorAll('[data-label]')) {
    element.setAttribute('aria-label', word(element.dataset.label));
    if (element.matches('button')) element.title = word(element.dataset.label);
  }
  const button = document.getElementById('language');
  button.textContent = word('other');
  button.lang = language === 'zh' ? 'en' : 'zh';
  document.getElementById('list').replaceChildren(...word('list').flatMap(([key, text]) => {
    const term = document.createElement('dt'), meaning = document.createElement('dd');
    term.textContent = key;
    meaning.textContent = text;
    return [term, meaning];
  }));
}

export const otherLanguage = () => (language === 'en' ? 'zh' : 'en');
