// If the folder's page is opened from disk, browsers load none of its modules; this script is not a module, and explains.
if (location.protocol === 'file:') {
  const box = document.getElementById('error');
  box.hidden = false;
  box.querySelector('p').textContent = 'Browsers run this folder only from a server: run “python serve.py” in the folder, or export with --single-file. '
    + '浏览器只能通过服务器运行此文件夹：请在文件夹中运行 python serve.py，或用 --single-file 导出。';
  for (const useless of document.querySelectorAll('main, header button, header label, #error button')) useless.hidden = true;
}
