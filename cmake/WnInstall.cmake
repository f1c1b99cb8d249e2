# What a site gets beside programs, library and header: man pages and completion (made of what --help says, so that they
# cannot rot), the batch files, and examples of a configuration, a module file and a systemd unit.
set(WN_PYTHON_DIR ${CMAKE_INSTALL_DATADIR}/winnow/python CACHE STRING
    "where winnow.py is installed, under the prefix: lib/python3/dist-packages puts it on Python's path")
set(WN_SITE ${CMAKE_BINARY_DIR}/site)
set(WN_SITE_SOURCES ${CMAKE_SOURCE_DIR}/scripts/site)
add_custom_command(OUTPUT ${WN_SITE}/winnow.1 ${WN_SITE}/winnowd.8 ${WN_SITE}/winnow.bash
    COMMAND ${WN_SITE_SOURCES}/pages.sh $<TARGET_FILE:winnow> ${WN_SITE} ${PROJECT_VERSION}
    DEPENDS winnow winnowd ${WN_SITE_SOURCES}/pages.sh VERBATIM)
add_custom_target(wn_site ALL DEPENDS ${WN_SITE}/winnow.1)
configure_file(${WN_SITE_SOURCES}/modulefile.in ${WN_SITE}/${PROJECT_VERSION} @ONLY)

set(share ${CMAKE_INSTALL_DATADIR}/winnow)
install(FILES ${WN_SITE}/winnow.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${WN_SITE}/winnowd.8 DESTINATION ${CMAKE_INSTALL_MANDIR}/man8)
install(FILES ${WN_SITE}/winnow.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME winnow)
install(FILES ${WN_SITE}/${PROJECT_VERSION} DESTINATION ${share}/modulefiles/winnow)
install(FILES ${WN_SITE_SOURCES}/winnow.yaml models/tiny-llava/demo.jpg client/example.c DESTINATION ${share})
install(PROGRAMS scripts/slurm/serve.sbatch scripts/slurm/serve-pyxis.sbatch scripts/slurm/caption-folder.sbatch
    DESTINATION ${share}/slurm)
install(FILES scripts/slurm/README.md DESTINATION ${share}/slurm)
install(FILES client/python/winnow.py DESTINATION ${WN_PYTHON_DIR})
install(CODE "set(unit_in \"${WN_SITE_SOURCES}/winnow.service.in\")
    set(unit \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${share}/winnow.service\")")
install(CODE [[configure_file(${unit_in} ${unit} @ONLY) # the prefix is known now
    message(STATUS "Installing: ${unit}")]])
