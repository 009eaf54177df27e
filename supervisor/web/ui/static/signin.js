"use strict";
const WHY = {
  key: "This key is not known here.",
  scope: 'This key does not open the dashboard: give it scope = "read" or "admin" in llmd.toml.',
};
const why = WHY[new URLSearchParams(location.search).get("refused")];
if (why) document.getElementById("refused").textContent = why;
